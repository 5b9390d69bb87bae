"""The functions of the gate, version 1: group commit, settling of doubts, hand-over.

Revision: gate_v1
Follows: foundation
"""

from pathlib import Path

from alembic import op

revision = "gate_v1"
down_revision = "foundation"
branch_labels = None
depends_on = None

FUNCTIONS = ("commit_claims_v1", "void_claims_v1", "hand_over_v1")


def upgrade() -> None:
    """Create the functions from the SQL files beside this one, which never change."""
    for name in FUNCTIONS:
        path = Path(__file__).with_name(f"2026-11-23_{name}.sql")
        op.get_bind().exec_driver_sql(path.read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop the functions."""
    op.execute("DROP FUNCTION commit_claims_v1, void_claims_v1, hand_over_v1")
