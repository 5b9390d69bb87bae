"""`clocktower demo`: a town, a release, two thousand parents, the verdict; then it goes on serving."""

import json
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import httpx2
from rich.panel import Panel
from rich.text import Text

from app.cli.own_server import OwnServer
from app.cli.refusal import EXIT_WRONG, Refusal, out, say
from app.cli.rehearse import OPERATOR_CODE, Reports, rehearse_once
from app.cli.town import make_town
from loadtest.rehearsal import RehearsalOptions

_REQUEST_SECONDS: Final = 30.0
_OPENS_AFTER: Final = timedelta(seconds=2)
_STAYS_OPEN: Final = timedelta(days=1)
_PLACES_BY_HAND: Final = 30


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How to show it. With `leave` the demonstration ends with the verdict instead of serving on."""

    data_dir: Path
    reports_dir: Path
    port: int
    parents: int
    seed: int
    seconds_before: float
    workers: int
    leave: bool


def demo(options: DemoOptions) -> int:
    """Show the main job once. Returns the exit status: 0, or 1 when a promise was broken. Raises `Refusal`."""
    reports = Reports(options.reports_dir / "demo.json", options.reports_dir / "demo.html")
    try:
        options.reports_dir.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise Refusal(f"The directory {options.reports_dir} cannot be made ({problem.strerror}).") from problem
    reports.require_writable()
    try:
        options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_path = options.data_dir / "serve.log"
        log_path.write_bytes(b"")
    except OSError as problem:
        raise Refusal(f"The data directory {options.data_dir} cannot be used ({problem.strerror}).") from problem
    say(f"Starting PostgreSQL, Valkey and the service under {options.data_dir} (log: {log_path})")
    with OwnServer.start(
        options.data_dir, port=_port_to_take(options.port), workers=options.workers, log_path=log_path
    ) as server:
        say(f"It answers at {server.address}. Making the demonstration town")
        make_town(options.data_dir, operator_openid=OPERATOR_CODE)
        # Before the crowd's: of the releases that are open, the API lists first the one that opened first.
        by_hand = open_small_release(server.address)
        verdict = rehearse_once(
            RehearsalOptions(
                base_url=server.address,
                parents=options.parents,
                seed=options.seed,
                seconds_before=options.seconds_before,
                operator_code=OPERATOR_CODE,
                workers=options.workers,
            ),
            reports,
        )
        say(f"The verdict is in {reports.json} and, with charts, in {reports.html}.")
        status = 0 if verdict.holds else EXIT_WRONG
        if options.leave:
            return status
        _show_the_way(server.address, by_hand)
        try:
            server.wait()
        except KeyboardInterrupt:
            say("Stopping")
            return status
        raise Refusal(server.last_words(), exit_status=EXIT_WRONG)


def _port_to_take(port: int) -> int:
    """Return the port, or 0 for a free one when somebody has it: a demonstration should not fail of that."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            say(f"Port {port} is in use; taking a free one.")
            return 0
    return port


def _show_the_way(address: str, release: dict[str, Any]) -> None:
    command = claim_by_hand(address, release)
    out.print(
        Panel(
            Text(f"API docs: {address}/docs\nFrom sign-in to a booking, step by step: docs/api-guide.md\nStop: Ctrl-C"),
            title="Clocktower 继续运行 · goes on serving",
            border_style="blue",
            expand=False,
        )
    )
    out.print(
        f"To grab a place by hand, paste this; a second release, of {_PLACES_BY_HAND} places, is open for it. "
        "Pasted again, it gives the same answer.\n",
        soft_wrap=True,
    )
    out.print(Text(command + "\n"), soft_wrap=True)


def open_small_release(address: str) -> dict[str, Any]:
    """Make and publish a release that nobody rushes, and return it."""
    with httpx2.Client(base_url=address, timeout=_REQUEST_SECONDS) as client:
        operator = _sign_in(client, OPERATOR_CODE)
        stations = _ask(client, "GET", "/v1/stations?kind=service_station&limit=1", operator)
        now = _now_there(client)
        release = _ask(client, "POST", "/v1/releases", operator, _small_release(stations["items"][0]["id"], now))
        return _ask(client, "POST", f"/v1/releases/{release['id']}/publish", operator)


def claim_by_hand(address: str, release: dict[str, Any]) -> str:
    """Sign a family in, fetch its pass, and return the one command that is left: the claim."""
    with httpx2.Client(base_url=address, timeout=_REQUEST_SECONDS) as client:
        parent = _sign_in(client, f"demo-visitor-{uuid4().hex[:8]}")
        now = _now_there(client)
        child = _ask(
            client,
            "POST",
            "/v1/me/people",
            parent,
            {
                "nickname": "儿童甲0001",
                "birth_month": f"{now.year - 8}-05",
                "relation": "child",
                "resident_unit_id": None,
                "consent": {"version": "2026-01", "purposes": ["booking"]},
            },
        )
        given = _ask(client, "POST", f"/v1/releases/{release['id']}/pass", parent, {"people": [child["id"]]})
    body = {
        "release": release["id"],
        "people": [child["id"]],
        "choices": [pool["id"] for pool in release["pools"]],
        "together": True,
        "waitlist": False,
    }
    return (
        f"curl -si -X PUT '{address}/v1/claims/{uuid4()}' \\\n"
        f"  -H 'Authorization: Pass {given['pass']}' \\\n"
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d '{json.dumps(body)}'"
    )


def _now_there(client: httpx2.Client) -> datetime:
    return datetime.fromisoformat(cast("str", _ask(client, "GET", "/v1/time", {})["now"]))


def _small_release(station_id: str, now: datetime) -> dict[str, object]:
    opens_at = (now + _OPENS_AFTER).astimezone(UTC)
    starts_at = (opens_at + timedelta(days=10)).replace(minute=0, second=0, microsecond=0)
    return {
        "title": "亲手抢一个名额",
        "mode": "grab",
        "opens_at": opens_at.isoformat(),
        "closes_at": (opens_at + _STAYS_OPEN).isoformat(),
        "person_limit": 1,
        "account_limit": 2,
        "rules": "演示：先到先得。",
        "sessions": [
            {
                "station_id": station_id,
                "title": "剪纸入门",
                "summary": "A session to try the API on.",
                "starts_at": starts_at.isoformat(),
                "ends_at": (starts_at + timedelta(hours=1)).isoformat(),
                "room": "101",
                "capacity": _PLACES_BY_HAND,
                "age_min": 5,
                "age_max": 13,
                "waitlist_limit": 3,
                "resident_unit_id": None,
            }
        ],
    }


def _sign_in(client: httpx2.Client, code: str) -> dict[str, str]:
    signed_in = _ask(client, "POST", "/v1/auth/wechat", {}, {"code": code})
    return {"Authorization": f"Bearer {signed_in['access_token']}"}


def _ask(
    client: httpx2.Client, method: str, path: str, headers: dict[str, str], body: object | None = None
) -> dict[str, Any]:
    try:
        answer = client.request(method, path, headers={"Accept-Language": "en", **headers}, json=body)
    except httpx2.HTTPError as error:
        raise Refusal(f"{method} {path} was not answered ({error}).") from error
    document = cast("dict[str, Any]", answer.json())
    if not answer.is_success:
        raise Refusal(f"{method} {path} was refused with {answer.status_code}: {document.get('detail')}")
    return document
