"""Releases, winners and phones for the tests of the gate: real rows, real passes, real requests."""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg

from app.booking.gate.desk import Answer, Desk, Request
from app.booking.gate.gate import Gate
from app.booking.gate.ledger import Winner, commit_arguments
from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.booking.gate.records import ClaimRecord, Entry, Status
from app.booking.gate.state import PoolSetup, Release, ReleaseSetup
from app.core.ids import new_id

HOUR = timedelta(hours=1)
FAR_FUTURE_MS = 4_102_444_800_000  # 2100-01-01


@dataclass(frozen=True, slots=True)
class MadeRelease:
    """A published release in PostgreSQL. Pools stand in the order of their ordinals."""

    release_id: UUID
    pools: tuple[UUID, ...]
    capacities: tuple[int, ...]

    def at_epoch(self, epoch: int) -> Release:
        """Return the release as a worker of that epoch knows it, as far as the commit needs it."""
        pools = tuple(PoolSetup(pool.bytes, n) for pool, n in zip(self.pools, self.capacities, strict=True))
        return Release(ReleaseSetup(self.release_id.bytes, epoch, 0, FAR_FUTURE_MS, 10, 20, pools), "nobody")


async def make_release(
    db: "asyncpg.Connection[asyncpg.Record]",
    *,
    capacities: Sequence[int] = (5,),
    waitlist_limit: int = 0,
    person_limit: int = 10,
    account_limit: int = 20,
    opens_in_seconds: float = -60,
    closes_in_seconds: float = 86_400,
    start_hours: Sequence[int] | None = None,
) -> MadeRelease:
    """Publish a release. Pools begin `start_hours` from now (an hour apart unless told) and last 50 minutes."""
    now = datetime.now(UTC)
    release_id = new_id()
    await db.execute(
        "INSERT INTO release (id, title, state, opens_at, closes_at, person_limit, account_limit, rules_version)"
        " VALUES ($1, 'release', 'published', $2, $3, $4, $5, 'r1')",
        release_id,
        now + timedelta(seconds=opens_in_seconds),
        now + timedelta(seconds=closes_in_seconds),
        person_limit,
        account_limit,
    )
    hours = start_hours or range(48, 48 + len(capacities))
    pools: list[UUID] = []
    for ordinal, (capacity, hour) in enumerate(zip(capacities, hours, strict=True)):
        pool_id = new_id()
        pools.append(pool_id)
        starts_at = now + hour * HOUR
        await db.execute(
            "INSERT INTO pool (id, release_id, ordinal, kind, title, during, waitlist_limit)"
            " VALUES ($1, $2, $3, 'session', 'pool', tstzrange($4, $5), $6)",
            pool_id,
            release_id,
            ordinal,
            starts_at,
            starts_at + timedelta(minutes=50),
            waitlist_limit,
        )
        await db.execute(
            "INSERT INTO place (pool_id, place_no) SELECT $1, n FROM generate_series(1, $2::integer) AS n",
            pool_id,
            capacity,
        )
    return MadeRelease(release_id, tuple(pools), tuple(capacities))


class Wish(NamedTuple):
    """One booking as a script might have given it: who, which pool, which place (None: waiting)."""

    person: UUID
    ordinal: int = 0
    place_no: int | None = 1


def winner(*wishes: Wish, claim_id: UUID | None = None, seq: int = 1, account: UUID | None = None) -> Winner:
    """Return a claim as the script hands it to the ledger."""
    entries = tuple(
        Entry(
            wish.person.bytes,
            wish.ordinal,
            wish.place_no or seq,
            Status.WAITLISTED if wish.place_no is None else Status.CONFIRMED,
        )
        for wish in wishes
    )
    record = ClaimRecord(
        claim_id or new_id(), 1, b"fingerpr", (account or uuid4()).bytes, seq, 1_900_000_000_000, entries
    )
    return Winner(record, "{}")


async def commit(db: "asyncpg.Connection[asyncpg.Record]", release: Release, *winners: Winner) -> dict[UUID, str]:
    """Call the group commit as the ledger does; outcome by claim id."""
    arguments = commit_arguments(release, winners)
    places = ", ".join(f"${number}" for number in range(1, len(arguments) + 1))
    rows = await db.fetch(f"SELECT * FROM commit_claims_v2({places})", *arguments)  # noqa: S608 - numbers only
    assert len(rows) == len({row["claim_id"] for row in rows}), "one answer for each claim"
    return {row["claim_id"]: row["outcome"] for row in rows}


async def rows_of(db: "asyncpg.Connection[asyncpg.Record]", claim_id: UUID) -> list[tuple[UUID, int | None, str]]:
    """Return a claim's bookings in PostgreSQL: person, place, status."""
    rows = await db.fetch(
        "SELECT person_id, place_no, status FROM booking WHERE claim_id = $1 ORDER BY position", claim_id
    )
    return [(row["person_id"], row["place_no"], row["status"]) for row in rows]


async def held(db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease) -> list[tuple[int, int]]:
    """Return every held place of a release, as (ordinal, place number), doubled where it is held twice."""
    rows = await db.fetch(
        "SELECT pool.ordinal, booking.place_no FROM booking JOIN pool ON pool.id = booking.pool_id"
        " WHERE pool.release_id = $1 AND booking.status = 'confirmed' ORDER BY 1, 2",
        made.release_id,
    )
    return [(row["ordinal"], row["place_no"]) for row in rows]


async def epoch_of(db: "asyncpg.Connection[asyncpg.Record]", made: MadeRelease) -> int:
    """Return the release's epoch in PostgreSQL."""
    epoch: int = await db.fetchval("SELECT epoch FROM release WHERE id = $1", made.release_id)
    return epoch


@dataclass(frozen=True, slots=True)
class Phone:
    """A parent's phone: an account, its people, and a pass for one release."""

    made: MadeRelease
    text: str
    account: UUID
    people: tuple[UUID, ...]

    @classmethod
    def with_pass(
        cls,
        signer: PassSigner,
        made: MadeRelease,
        *,
        people: Sequence[UUID] | int = 1,
        account: UUID | None = None,
        delay_ms: int = 0,
        expires_ms: int = FAR_FUTURE_MS,
    ) -> "Phone":
        """Sign a pass for these people (or so many new ones) and all pools."""
        who = tuple(uuid4() for _ in range(people)) if isinstance(people, int) else tuple(people)
        account = account or uuid4()
        pools = mask_of(set(range(len(made.pools))))
        contents = Pass.of(
            made.release_id, account, expires_ms, tuple(PassPerson(p.bytes, pools, delay_ms) for p in who)
        )
        return cls(made, signer.sign(contents), account, who)

    @property
    def headers(self) -> dict[str, str]:
        """Return what this phone sends with every claim, as HTTP clients take it."""
        return {"content-type": "application/json", "authorization": f"Pass {self.text}", "accept-language": "en"}

    def claim(
        self,
        *ordinals: int,
        claim_id: UUID | None = None,
        people: Iterable[UUID] | None = None,
        together: bool = True,
        waitlist: bool = False,
    ) -> Request:
        """Return the request for these pools in order of preference (the first pool unless told)."""
        body = {
            "release": str(self.made.release_id),
            "people": [str(person) for person in (people or self.people)],
            "choices": [str(self.made.pools[ordinal]) for ordinal in (ordinals or (0,))],
            "together": together,
            "waitlist": waitlist,
        }
        headers = {name.encode(): value.encode() for name, value in self.headers.items()}
        return Request("PUT", f"/v1/claims/{claim_id or new_id()}", headers, json.dumps(body).encode())


def changed(request: Request, **changes: object) -> Request:
    """Return a request like this one but for these attributes."""
    other = copy.copy(request)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


class Said(NamedTuple):
    """An answer, read."""

    status: int
    word: str
    body: dict[str, Any]

    @property
    def place(self) -> tuple[str, int]:
        """Return pool and number of the first booking's place."""
        booking = self.body["bookings"][0]
        return booking["pool"], booking["place_no"]


def read(answer: Answer) -> Said:
    """Read an answer: its status, and its state or code in a word."""
    body: dict[str, Any] = json.loads(answer.body_for(b"request-1"))
    return Said(answer.status, body.get("code") or body["state"], body)


def words(answers: Iterable[Said]) -> Counter[str]:
    """Count answers by word."""
    return Counter(said.word for said in answers)


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker: a gate with connections of its own, and the desk in front of it."""

    gate: Gate
    desk: Desk

    async def ask(self, request: Request) -> Said:
        """Put a request to the desk."""
        return read(await self.desk.answer(request))
