"""The same town and the same people as in the tests of releases."""

from tests.booking.releases.conftest import foreign_staff, operator, resident, staff, town

__all__ = ["foreign_staff", "operator", "resident", "staff", "town"]
