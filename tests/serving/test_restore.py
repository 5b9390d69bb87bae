"""A back-up that was taken in the middle of an opening, restored beside a Valkey that knows more, or nothing."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx2
import pytest
from redis.asyncio import Redis

from app.booking.gate.desk import Request
from app.booking.gate.passes import PassSigner
from app.core.embedded import Engines, postgres
from app.core.ids import new_id
from tests.booking.gate.agreement import assert_agrees, command
from tests.booking.gate.builders import MadeRelease, Phone, epoch_of, held, make_release
from tests.conftest import dsn_of
from tests.serving.conftest import Serve
from tests.serving.servers import Server, await_true, clocktower

_T = TypeVar("_T")
CAPACITY = 8
KEYS = {
    "CLOCKTOWER_TOKEN_KEY": "token-key-of-the-tests-0123456789abcdef",
    "CLOCKTOWER_PASS_KEY": "pass-key-of-the-tests-0123456789abcdef0",
    "CLOCKTOWER_SEALING_KEY": "sealing-key-of-the-tests-0123456789abcd",
    "CLOCKTOWER_WECHAT_BASE_URL": "http://127.0.0.1:9",
    "CLOCKTOWER_WECHAT_APP_ID": "wx",
    "CLOCKTOWER_WECHAT_APP_SECRET": "secret",
}


def program(name: str, *arguments: str, dsn: str) -> None:
    """Run one of PostgreSQL's programs against a database."""
    address = urlsplit(dsn)
    query = parse_qs(address.query)
    where = ("--host", query["host"][0], "--port", query["port"][0], "--username", address.username or "")
    subprocess.run(  # noqa: S603 - PostgreSQL's own programs
        [postgres._find_bin_dir() / name, *where, *arguments], check=True, capture_output=True, text=True
    )


@dataclass
class Told:
    """A claim that heard a yes."""

    phone: Phone
    request: Request


def said(server: Server, claim: Told) -> tuple[int, str]:
    """Send a claim until it is answered with more than "come again"."""
    answer = None

    def answered() -> bool:
        nonlocal answer
        answer = httpx2.put(
            server.address + claim.request.path, headers=claim.phone.headers, content=claim.request.body, timeout=30
        )
        return answer.status_code not in {202, 503}

    await_true(answered)
    assert answer is not None
    document = answer.json()
    return answer.status_code, document.get("code") or document["state"]


async def _tell(redis_url: str, *words: object) -> None:
    async with Redis.from_url(redis_url) as redis:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
        await command(redis, *words)


async def _with_database(dsn: str, work: Callable[["asyncpg.Connection[asyncpg.Record]"], Awaitable[_T]]) -> _T:
    connection = await asyncpg.connect(dsn)
    try:
        return await work(connection)
    finally:
        await connection.close()


@pytest.mark.parametrize("valkey", ["that knows more", "that is empty"])
def test_a_restored_database_confirms_nothing_that_it_does_not_hold(
    engines: Engines, template: str, redis_url: str, serve: Serve, data_dir: Path, tmp_path: Path, valkey: str
) -> None:
    names = [f"{name}_{valkey.rsplit(maxsplit=1)[-1]}" for name in ("opening", "restored")]
    opening, restored = (dsn_of(engines, name) for name in names)
    asyncio.run(
        _with_database(engines.database_dsn, lambda db: db.execute(f"CREATE DATABASE {names[0]} TEMPLATE {template}"))
    )
    made: MadeRelease = asyncio.run(_with_database(opening, lambda db: make_release(db, capacities=(CAPACITY,))))
    signer = PassSigner(KEYS["CLOCKTOWER_PASS_KEY"])

    def new_claim() -> Told:
        phone = Phone.with_pass(signer, made)
        return Told(phone, phone.claim(claim_id=new_id()))

    here = {**KEYS, "CLOCKTOWER_REDIS_URL": redis_url, "CLOCKTOWER_SWEEP_INTERVAL_MS": "100"}
    server = serve(data_dir, env={**here, "CLOCKTOWER_DATABASE_URL": opening})
    before = [new_claim() for _ in range(3)]
    assert [said(server, claim) for claim in before] == [(201, "confirmed")] * 3
    during = [new_claim() for _ in range(2)]
    with ThreadPoolExecutor() as crowd:
        answers = [crowd.submit(said, server, claim) for claim in during]
        program("pg_dump", "--format=custom", "--file", str(tmp_path / "backup"), names[0], dsn=opening)
        assert [answer.result() for answer in answers] == [(201, "confirmed")] * 2
    after = [new_claim() for _ in range(CAPACITY - 5)]
    assert [said(server, claim) for claim in after] == [(201, "confirmed")] * len(after)
    epoch_before = asyncio.run(_with_database(opening, lambda db: epoch_of(db, made)))
    server.end()

    asyncio.run(_with_database(engines.database_dsn, lambda db: db.execute(f"CREATE DATABASE {names[1]}")))
    program("pg_restore", "--dbname", names[1], "--exit-on-error", str(tmp_path / "backup"), dsn=restored)
    if valkey == "that is empty":
        asyncio.run(_tell(redis_url, "FLUSHALL"))
    server = serve(data_dir, env={**here, "CLOCKTOWER_DATABASE_URL": restored})
    rows = asyncio.run(_with_database(restored, lambda db: held(db, made)))
    assert 3 <= len(rows) <= 5
    # Before those who lost their places ask, others take all but one of them; then everybody asks again.
    newcomers = [new_claim() for _ in range(CAPACITY - len(rows) - 1)]
    assert [said(server, claim) for claim in newcomers] == [(201, "confirmed")] * len(newcomers)
    heard = [(claim, *said(server, claim)) for claim in [*after, *during, *before]]
    assert [word for claim, _, word in heard if claim in before] == ["confirmed"] * 3
    assert {word for _, _, word in heard} == {"confirmed", "sold_out"}

    async def booked(db: "asyncpg.Connection[asyncpg.Record]") -> set[str]:
        rows = await db.fetch("SELECT claim_id FROM booking WHERE status = 'confirmed'")
        return {f"/v1/claims/{row['claim_id']}" for row in rows}

    yes = {claim.request.path for claim, _, word in heard if word == "confirmed"}
    assert yes | {claim.request.path for claim in newcomers} == asyncio.run(_with_database(restored, booked))

    async def agrees(db: "asyncpg.Connection[asyncpg.Record]") -> None:
        async with Redis.from_url(redis_url) as redis:  # pyright: ignore[reportUnknownMemberType] - untyped **kwargs
            await assert_agrees(db, redis, made)
        assert len(await held(db, made)) == CAPACITY
        assert await epoch_of(db, made) > epoch_before

    asyncio.run(_with_database(restored, agrees))
    looked = clocktower("reconcile", "--dry-run", env={**here, "CLOCKTOWER_DATABASE_URL": restored})
    assert looked.returncode == 0, looked.stdout
