"""pretix's settings, but for its migrations: tables are made as its models say, as pretix's own tests have them made.

Its 300 migrations take a minute and come to the same tables, columns, indexes and constraints. Runs in pretix's own
environment.
"""

# pyright: reportMissingImports=false
# What is imported here is installed in another environment than the one that is checked.

from pretix.settings import *  # noqa: F403 - settings are made so


class _NoMigrations:
    def __contains__(self, app: str) -> bool:
        return True

    def __getitem__(self, app: str) -> None:
        return None


MIGRATION_MODULES = _NoMigrations()
