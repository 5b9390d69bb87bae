"""Why staff changed a published release, or a capacity, and who.

Revision: release_changes
Follows: gate_v1
"""

# SQLAlchemy leaves the parameters of some column types open where nothing infers them, as here.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "release_changes"
down_revision = "gate_v1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "release_change",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("release_id", sa.Uuid(), nullable=False),
        sa.Column("pool_id", sa.Uuid(), nullable=True),
        sa.Column("changed_by", sa.Uuid(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reason", sa.String(length=300), nullable=False),
        sa.Column("changes", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["pool_id"], ["pool.id"], name=op.f("fk_release_change_pool_id")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_release_change_release_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_change")),
    )
    op.create_index("ix_release_change_release", "release_change", ["release_id", "id"], unique=False)


def downgrade() -> None:
    """Drop the table."""
    op.drop_index("ix_release_change_release", table_name="release_change")
    op.drop_table("release_change")
