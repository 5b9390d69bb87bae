"""Every feature's tables in one place, for Alembic."""

from app.accounts import models as accounts
from app.booking import models as booking
from app.core import idempotency
from app.core.db import Base
from app.programme import models as programme
from app.stations import models as stations

__all__ = ["accounts", "booking", "idempotency", "metadata", "programme", "stations"]

metadata = Base.metadata
