"""The group commit of the gate, version 2.

Revision: commit_v2
Follows: release_changes
"""

from pathlib import Path

from alembic import op

revision = "commit_v2"
down_revision = "release_changes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the function from the SQL file beside this one, which never changes."""
    path = Path(__file__).with_name("2026-11-26_commit_claims_v2.sql")
    op.get_bind().exec_driver_sql(path.read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop the function."""
    op.execute("DROP FUNCTION commit_claims_v2")
