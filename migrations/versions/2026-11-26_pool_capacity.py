"""A pool's capacity beside the pool, counted by a trigger whenever places come or go.

Revision: pool_capacity
Follows: commit_v2
"""

# SQLAlchemy leaves the parameters of some column types open where nothing infers them, as here.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import sqlalchemy as sa
from alembic import op

revision = "pool_capacity"
down_revision = "commit_v2"
branch_labels = None
depends_on = None

_COUNTING = (
    # For a statement as a whole, however many places it makes: each pool is written once. Pools in the order of their
    # ids, so that two such statements cannot deadlock.
    """
    CREATE FUNCTION count_places_v1() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
    BEGIN
        PERFORM FROM pool WHERE id IN (SELECT pool_id FROM changed) ORDER BY id FOR NO KEY UPDATE;
        UPDATE pool SET capacity = capacity + counted.places * CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END
        FROM (SELECT pool_id, count(*) AS places FROM changed GROUP BY pool_id) AS counted
        WHERE pool.id = counted.pool_id;
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER place_comes AFTER INSERT ON place REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION count_places_v1()
    """,
    """
    CREATE TRIGGER place_goes AFTER DELETE ON place REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION count_places_v1()
    """,
    # One that moved would be counted where it was.
    """
    CREATE FUNCTION place_stays_v1() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
    BEGIN
        RAISE EXCEPTION 'a place stays in its pool: delete it there, and insert it where it belongs'
            USING ERRCODE = 'check_violation';
    END
    $$
    """,
    """
    CREATE TRIGGER place_stays BEFORE UPDATE OF pool_id ON place
    FOR EACH ROW WHEN (OLD.pool_id <> NEW.pool_id) EXECUTE FUNCTION place_stays_v1()
    """,
)


def upgrade() -> None:
    """Count what is there, and from then on what comes and goes."""
    # All that this migration and the next one change, in the order in which a commit takes them: one that comes
    # meanwhile waits, and neither undoes the other.
    op.execute("LOCK TABLE booking, pool, place IN ACCESS EXCLUSIVE MODE")
    op.add_column("pool", sa.Column("capacity", sa.Integer(), server_default="0", nullable=False))
    op.execute("UPDATE pool SET capacity = (SELECT count(*) FROM place WHERE place.pool_id = pool.id)")
    op.create_check_constraint(op.f("ck_pool_capacity_not_negative"), "pool", "capacity >= 0")
    for statement in _COUNTING:
        op.execute(statement)


def downgrade() -> None:
    """Let the places be counted whenever somebody asks, as before."""
    op.execute("DROP TRIGGER place_comes ON place")
    op.execute("DROP TRIGGER place_goes ON place")
    op.execute("DROP TRIGGER place_stays ON place")
    op.execute("DROP FUNCTION count_places_v1, place_stays_v1")
    op.drop_column("pool", "capacity")
