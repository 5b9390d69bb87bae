"""What pretix is told, as a production install tells it: PostgreSQL, Redis for its cache and sessions, a broker."""

import os
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

from loadtest.bench.peers.building import building_site

SITE: Final = building_site("pretix")
PYTHON: Final = SITE / "venv" / "bin" / "python"
# pretix's tables, as it made them itself (see `tables_alone`).
TABLES: Final = SITE / "tables.sql"
# The databases of the Redis server that are pretix's: what it remembers, and what it leaves to its workers.
CACHE_DB: Final = 13
TASKS_DB: Final = 14


def database_of_its_own(database_url: str) -> str:
    """Return the address of pretix's database, beside the service's on the same server."""
    address = urlsplit(database_url)
    return urlunsplit(address._replace(path=f"{address.path}_pretix"))


def name_in(database_url: str) -> str:
    """Return the name of the database that an address leads to."""
    return unquote(urlsplit(database_url).path.removeprefix("/"))


def pretix_environment(database_url: str, redis_socket: Path, data_dir: Path, port: int) -> dict[str, str]:
    """Return the variables that pretix reads its settings from, in place of a file."""
    address = urlsplit(database_url)
    query = {name: values[0] for name, values in parse_qs(address.query).items()}
    socket_path = quote(str(redis_socket))
    tasks = f"redis+socket://{socket_path}?virtual_host={TASKS_DB}"
    given = {
        "PRETIX_URL": f"http://127.0.0.1:{port}",
        "PRETIX_DATADIR": str(data_dir),
        "PRETIX_REGISTRATION": "off",
        # It would log each refusal as a warning, twice.
        "PRETIX_LOGLEVEL": "ERROR",
        "DATABASE_BACKEND": "postgresql",
        "DATABASE_NAME": name_in(database_url),
        "DATABASE_HOST": address.hostname or query["host"],
        "DATABASE_PORT": str(address.port or query.get("port", "")),
        "DATABASE_USER": unquote(address.username or query.get("user", "")),
        "DATABASE_PASSWORD": unquote(address.password or query.get("password", "")),
        "REDIS_LOCATION": f"unix://{socket_path}?db={CACHE_DB}",
        "REDIS_SESSIONS": "on",
        "CELERY_BROKER": tasks,
        "CELERY_BACKEND": tasks,
        # Orders made over the API send no mail unless told to; if some did, nobody would listen there.
        "MAIL_HOST": "127.0.0.1",
        "MAIL_PORT": "9",
        "DJANGO_DEBUG": "off",
    }
    return {"PRETIX_CONFIG_FILE": os.devnull, **{f"PRETIX_{name}": value for name, value in given.items()}}
