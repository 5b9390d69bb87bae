"""What rows of claims and bookings say, in words and in SQL: one place for the gate and for its neighbours.

Functions and constraints in PostgreSQL have the same words in their migrations, which never change.
"""

from typing import Final, Literal, get_args

# How a booking stands, and a claim that got something; a void claim got nothing and is shown to nobody.
StatusWord = Literal["confirmed", "waitlisted", "cancelled", "cancelled_by_staff"]
ClaimState = Literal["confirmed", "waitlisted", "cancelled"]
LiveWord = Literal["confirmed", "waitlisted"]

STATUS_WORDS: Final[tuple[StatusWord, ...]] = get_args(StatusWord)
CLAIM_STATES: Final[tuple[str, ...]] = (*get_args(ClaimState), "void")
# Of bookings that have a place, or want one.
LIVE_WORDS: Final[tuple[LiveWord, ...]] = get_args(LiveWord)


def one_of(column: str, words: tuple[str, ...]) -> str:
    """Return the SQL condition that a column has one of these words."""
    quoted = ", ".join(f"'{word}'" for word in words)
    return f"{column} IN ({quoted})"


# When a booking has a place, and when it has or wants one.
HOLDS_A_PLACE: Final = "status = 'confirmed'"
LIVE: Final = one_of("status", LIVE_WORDS)

# Where a waiter of the table `booking` stands at this moment, from 1; null for others. For some bookings, this is.
WAITING_POSITION: Final = """
CASE WHEN booking.status = 'waitlisted' THEN (
    SELECT count(*) FROM booking AS ahead
    WHERE ahead.pool_id = booking.pool_id AND ahead.status = 'waitlisted'
      AND (ahead.wait_seq, ahead.position) <= (booking.wait_seq, booking.position)
) END
"""
# The same where every waiter of a pool is among the rows: it counts them once, and not once for each of them.
WAITING_POSITION_OF_ALL: Final = """
CASE WHEN booking.status = 'waitlisted' THEN
    count(*) FILTER (WHERE booking.status = 'waitlisted')
        OVER (PARTITION BY booking.pool_id, booking.status ORDER BY booking.wait_seq, booking.position)
END
"""


def release_lock(release: str, *, alone: bool) -> str:
    """Return the SQL expression that takes a release's lock until the transaction ends.

    `release` is the SQL of its id. Commits of the gate and whoever gives back share the lock; a rebuild, and whoever
    changes the release, holds it alone.
    """
    function = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    return f"{function}(hashtextextended('release:' || CAST({release} AS uuid)::text, 0))"
