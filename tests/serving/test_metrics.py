"""The numbers of a service rise when the thing happens, in whichever process, and nobody reads them unasked."""

import asyncio
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import get_args

import httpx2
import pytest

from app.booking.gate.errors import FenceCause
from app.booking.gate.keys import EpochKeys
from app.core.settings import host_and_port
from tests.booking.gate.agreement import command
from tests.booking.gate.builders import MadeRelease, Phone, make_release
from tests.booking.gate.steps import admit
from tests.serving.servers import REFUSED, Server, await_true, clean_environment, clocktower, engines_in
from tests.serving.test_reconcile import Inside, inside

WORKERS = 2
_SAMPLE = re.compile(r"^(?P<name>[a-z_]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    running = Server.start(
        tmp_path_factory.mktemp("counted") / "data",
        *("--workers", str(WORKERS)),
        env={"CLOCKTOWER_METRICS_ADDRESS": "127.0.0.1:0", "CLOCKTOWER_SWEEP_INTERVAL_MS": "100"},
    )
    yield running
    running.end()


@pytest.fixture(scope="module")
def address(server: Server) -> str:
    """Return where the metrics are, as the server said."""
    return re.findall(r"Metrics at (\S+)", server.log_path.read_text())[0]


@pytest.fixture(scope="module")
def numbers(address: str) -> Callable[[], dict[str, float]]:
    """Read every number by its name with labels, added up over all processes."""

    def read() -> dict[str, float]:
        text = httpx2.get(address).raise_for_status().text
        return {
            found["name"] + (f"{{{found['labels']}}}" if found["labels"] else ""): float(found["value"])
            for found in _SAMPLE.finditer(text)
        }

    return read


def rise(numbers: Callable[[], dict[str, float]], name: str, by: float, since: dict[str, float]) -> None:
    """Wait until a number has risen by at least so much."""
    await_true(lambda: numbers().get(name, 0.0) - since.get(name, 0.0) >= by)


def claim(server: Server, phone: Phone, *ordinals: int) -> str:
    request = phone.claim(*ordinals)
    answer = httpx2.put(server.address + request.path, headers=phone.headers, content=request.body)
    document = answer.json()
    return document.get("code") or document["state"]


def published(server: Server, *, capacity: int) -> MadeRelease:
    return inside(server, lambda at: make_release(at.db, capacities=(capacity,)))


def phones(server: Server, made: MadeRelease, count: int) -> list[Phone]:
    async def with_passes(at: Inside) -> list[Phone]:
        return [Phone.with_pass(at.signer, made) for _ in range(count)]

    return inside(server, with_passes)


def test_what_has_not_happened_yet_stands_at_nought(numbers: Callable[[], dict[str, float]]) -> None:
    now = numbers()
    for name, label, values in (
        ("fences_closed", "cause", get_args(FenceCause)),
        ("swept", "what", ("claims_released", "claims_confirmed", "places_handed_over", "news_told")),
        ("claims_in_doubt_settled", "fate", ("booked", "not_booked")),
        ("unavailable_answers", "code", ("busy", "rebuilding", "gate_unreachable", "unavailable")),
        ("claims_written", "outcome", ("in", "place_taken", "person_booked", "differs")),
    ):
        for value in values:
            assert f'clocktower_{name}_total{{{label}="{value}"}}' in now
    assert now["clocktower_rebuilds_failed_total"] == 0


def test_claims_are_counted_by_outcome_over_all_processes(
    server: Server, numbers: Callable[[], dict[str, float]]
) -> None:
    before = numbers()
    made = published(server, capacity=3)
    heard = [claim(server, phone) for phone in phones(server, made, 12)]
    assert heard.count("confirmed") == 3
    rise(numbers, 'clocktower_claims_judged_total{outcome="booked"}', 3, before)
    rise(numbers, 'clocktower_claims_written_total{outcome="in"}', 3, before)
    rise(numbers, "clocktower_rebuild_seconds_count", 1, before)

    def refused() -> float:
        now = numbers()
        names = [f'clocktower_claims_judged_total{{outcome="{word}"}}' for word in ("sold_out", "full")]
        return sum(now.get(name, 0.0) - before.get(name, 0.0) for name in names)

    await_true(lambda: refused() >= 9)
    assert numbers()["clocktower_admission_queue_claims"] == 0


def test_a_state_that_is_lost_closes_a_fence_and_is_made_anew(
    server: Server, numbers: Callable[[], dict[str, float]]
) -> None:
    made = published(server, capacity=20)
    everybody = phones(server, made, 12)
    for _ in range(20):
        # Each on a connection of its own, so that every process meets the release.
        httpx2.get(f"{server.address}/v1/releases/{made.release_id}/availability").raise_for_status()
    before = numbers()
    inside(server, lambda at: command(at.redis, "FLUSHALL"))
    while everybody:
        claim(server, everybody.pop())
    rise(numbers, 'clocktower_fences_closed_total{cause="no_state"}', 1, before)
    rise(numbers, "clocktower_rebuild_seconds_count", 1, before)
    rise(numbers, "clocktower_rebuild_seconds_sum", 0.000_1, before)


def test_a_contradiction_and_an_old_epoch_each_close_their_fence(
    server: Server, numbers: Callable[[], dict[str, float]]
) -> None:
    made = published(server, capacity=20)
    first, second, third = phones(server, made, 3)
    assert claim(server, first) == "confirmed"
    before = numbers()
    inside(server, lambda at: command(at.redis, "DEL", EpochKeys(made.release_id, 1).pools))
    assert claim(server, second) in {"confirmed", "rebuilding"}
    rise(numbers, 'clocktower_fences_closed_total{cause="contradiction"}', 1, before)
    await_true(lambda: claim(server, third) in {"confirmed", "already_booked"})

    async def raise_epoch(at: Inside) -> None:
        await at.db.execute("UPDATE release SET epoch = epoch + 1 WHERE id = $1", made.release_id)

    inside(server, raise_epoch)
    rise(numbers, 'clocktower_fences_closed_total{cause="stale_epoch"}', 1, before)


def test_a_claim_that_was_swept_is_counted_by_its_fate(server: Server, numbers: Callable[[], dict[str, float]]) -> None:
    made = published(server, capacity=4)
    before = numbers()

    async def orphan(at: Inside) -> None:
        await admit(at.worker, Phone.with_pass(at.signer, made).claim())

    inside(server, orphan, is_overdue_at_once=True)
    rise(numbers, 'clocktower_swept_total{what="claims_released"}', 1, before)


def test_an_answer_that_the_service_is_not_there_is_counted_by_its_code(
    server: Server, numbers: Callable[[], dict[str, float]]
) -> None:
    made = published(server, capacity=4)
    (phone,) = phones(server, made, 1)
    before = numbers()
    (valkey,) = [process for process in engines_in(server.data_dir) if "valkey" in process.name()]
    valkey.suspend()
    try:
        heard = claim(server, phone)
    finally:
        valkey.resume()
    assert heard in {"rebuilding", "gate_unreachable"}
    rise(numbers, f'clocktower_unavailable_answers_total{{code="{heard}"}}', 1, before)
    await_true(server.is_ready)


def test_what_a_process_counted_still_counts_when_it_is_gone(
    server: Server, numbers: Callable[[], dict[str, float]]
) -> None:
    made = published(server, capacity=4)
    everybody = phones(server, made, 8)
    before = numbers()
    assert {claim(server, phone) for phone in everybody[:4]} == {"confirmed"}
    name = 'clocktower_claims_written_total{outcome="in"}'
    rise(numbers, name, 4, before)
    counted = numbers()[name]
    old = {child.pid for child in server.children()}
    for child in server.children():
        if "app.cli.web" in child.cmdline():
            child.kill()
    await_true(lambda: len({child.pid for child in server.children()} - old) == WORKERS and server.is_ready())
    assert numbers()[name] >= counted


def test_the_worker_tells_when_it_last_ended_a_round(numbers: Callable[[], dict[str, float]]) -> None:
    name = "clocktower_worker_last_round_timestamp_seconds"
    first = numbers()[name]
    await_true(lambda: numbers()[name] > first)


def test_the_api_s_own_address_shows_no_numbers(server: Server) -> None:
    assert httpx2.get(server.address + "/metrics").status_code == 404


def test_nothing_of_a_claim_or_a_person_is_shown(server: Server, address: str) -> None:
    made = published(server, capacity=4)
    (phone,) = phones(server, made, 1)
    claim(server, phone)
    text = httpx2.get(address).text
    for secret in (made.release_id, *made.pools, phone.account, *phone.people):
        assert str(secret) not in text
        assert secret.hex not in text


@pytest.mark.parametrize("wrong", ["9464", "localhost", "host:port", "::1:9464", "127.0.0.1:70000", ":9464"])
def test_an_address_that_is_none_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be host:port"):
        host_and_port(wrong)
    if wrong == "9464":
        refused = clocktower("serve", "--data-dir", tmp_path, env={"CLOCKTOWER_METRICS_ADDRESS": wrong})
        assert refused.returncode == REFUSED
        assert "CLOCKTOWER_METRICS_ADDRESS: must be host:port, as 127.0.0.1:9464 or [::1]:9464" in refused.stderr


def test_an_address_that_is_taken_is_refused_before_the_engines_start(address: str, tmp_path: Path) -> None:
    taken = address.removeprefix("http://").removesuffix("/metrics")
    refused = clocktower("serve", "--port", "0", "--data-dir", tmp_path, env={"CLOCKTOWER_METRICS_ADDRESS": taken})
    assert refused.returncode == REFUSED
    assert f"CLOCKTOWER_METRICS_ADDRESS: {taken} cannot be listened on" in refused.stderr
    assert not (tmp_path / "postgres").exists()


def test_the_address_is_read_with_and_without_brackets() -> None:
    assert host_and_port("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert host_and_port("[::1]:0") == ("::1", 0)


def test_a_worker_of_its_own_shows_its_own_numbers(server: Server) -> None:
    async def look(at: Inside) -> str:
        process = await asyncio.create_subprocess_exec(*_worker_command(), env=_worker_environment(at), stderr=-1)
        assert process.stderr is not None
        try:
            async with asyncio.timeout(30):
                while b"Metrics at" not in (line := await process.stderr.readline()):
                    assert line, "the worker ended"
            async with httpx2.AsyncClient() as client:
                return (await client.get(line.decode().split()[-1])).raise_for_status().text
        finally:
            process.terminate()
            await process.wait()

    text = inside(server, look)
    assert "clocktower_worker_last_round_timestamp_seconds" in text
    assert "process_resident_memory_bytes" in text


def _worker_command() -> tuple[str, ...]:
    return sys.executable, "-m", "app.cli", "worker"


def _worker_environment(at: Inside) -> dict[str, str]:
    settings = at.worker.gate.settings
    return clean_environment(
        {
            "CLOCKTOWER_DATABASE_URL": settings.database_url.get_secret_value(),
            "CLOCKTOWER_REDIS_URL": settings.redis_url.get_secret_value(),
            "CLOCKTOWER_TOKEN_KEY": settings.token_key.get_secret_value(),
            "CLOCKTOWER_PASS_KEY": settings.pass_key.get_secret_value(),
            "CLOCKTOWER_SEALING_KEY": settings.sealing_key.get_secret_value(),
            "CLOCKTOWER_WECHAT_APP_ID": settings.wechat_app_id,
            "CLOCKTOWER_WECHAT_APP_SECRET": settings.wechat_app_secret.get_secret_value(),
            "CLOCKTOWER_METRICS_ADDRESS": "127.0.0.1:0",
        }
    )
