"""One index of live bookings that begins with the person: it keeps people out of a pool twice, and finds them.

Revision: person_first
Follows: pool_capacity
"""

import sqlalchemy as sa
from alembic import op

revision = "person_first"
down_revision = "pool_capacity"
branch_labels = None
depends_on = None

_LIVE = "status IN ('confirmed', 'waitlisted')"


def upgrade() -> None:
    """Make it, in place of one that begins with the pool and of one that holds cancelled bookings, too."""
    op.drop_index("uq_booking_one_each_person", table_name="booking", postgresql_where=sa.text(_LIVE))
    op.create_index(
        "uq_booking_one_each_person",
        "booking",
        ["person_id", "pool_id"],
        unique=True,
        postgresql_where=sa.text(_LIVE),
    )
    op.drop_index("ix_booking_person", table_name="booking")


def downgrade() -> None:
    """Make the two again."""
    op.create_index("ix_booking_person", "booking", ["person_id"], unique=False)
    op.drop_index("uq_booking_one_each_person", table_name="booking", postgresql_where=sa.text(_LIVE))
    op.create_index(
        "uq_booking_one_each_person",
        "booking",
        ["pool_id", "person_id"],
        unique=True,
        postgresql_where=sa.text(_LIVE),
    )
