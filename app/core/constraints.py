"""Turns a broken constraint into the refusal that it stands for: by its name, never by a message.

PostgreSQL sends the name in a field of its own. A feature maps the names that a caller can break; any other broken
constraint is a defect of ours and stays what it was.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import asyncpg
from sqlalchemy.exc import IntegrityError

from app.core.problems import Problem
from app.core.web.failures import constraint_of


@contextmanager
def constraint_problems(by_constraint: Mapping[str, Callable[[], Problem]]) -> Generator[None]:
    """Raise the mapped problem when a statement inside breaks a constraint; used around the statement alone.

    ```
    with constraint_problems({"uq_unit_name": UnitNameTaken}):
        await queries.add_unit(db, name=name)
    ```
    The transaction is lost by then, as after any error in PostgreSQL: the problem must reach the edge.
    """
    try:
        yield
    except (IntegrityError, asyncpg.IntegrityConstraintViolationError) as error:
        make = by_constraint.get(constraint_of(error) or "")
        if make is None:
            raise
        # From None: the driver's message quotes the row.
        raise make() from None
