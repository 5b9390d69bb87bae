"""The same parents for Locust: its web page, or headless.

    locust -f loadtest/locustfile.py -H http://127.0.0.1:8000
    locust -f loadtest/locustfile.py --headless -u 100 -r 50 -H http://127.0.0.1:8000

Each user lives one parent's evening after another (loadtest/behaviour.py) against the release named in
CROWD_RELEASE, or else the next one that opens, or else one that is open. Refusals that the API defines (sold out,
not open yet, …) count as good answers here; what Locust shows as failures are answers that should not occur.
"""

# Locust and gevent type their own code in part only; what comes out of them is typed where it is taken.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import itertools
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, assert_never
from urllib.parse import urlsplit

import gevent
import msgspec
from locust import FastHttpUser, task
from locust.env import Environment

from loadtest import wire
from loadtest.behaviour import (
    NOTHING_HEARD,
    Ask,
    GiveBack,
    Ground,
    Look,
    Reply,
    Rest,
    Step,
    Tap,
    best_of,
    live,
)
from loadtest.claim_ids import new_claim_id
from loadtest.http1 import Answer
from loadtest.phone import claim_body, read_answer
from loadtest.plan import ParentPlan, draw_parents, parent_rng
from loadtest.prepare import person_body

# Not CLOCKTOWER_…: those are the service's settings, and its commands refuse any that they do not know.
_RELEASE: Final = os.environ.get("CROWD_RELEASE", "")
_SEED_TEXT: Final = os.environ.get("CROWD_SEED", "1")
if not _SEED_TEXT.isascii() or not _SEED_TEXT.isdigit():
    sys.exit(f"CROWD_SEED is {_SEED_TEXT!r}; give a whole number, such as CROWD_SEED=7")
_SEED: Final = int(_SEED_TEXT)
# Who is drawn in advance; after the last, the first come again under other names.
_DRAWN_PARENTS: Final = 5_000
_EVENING_SECONDS: Final = 60.0
_BETWEEN_LIVES_SECONDS: Final = 1.0
_REQUEST_SECONDS: Final = 10.0
_RUN: Final = os.urandom(4).hex()
# Statuses that the API defines for a claim; anything else is a failure worth a look.
_EXPECTED: Final = frozenset({200, 201, 202, 204, 304, 404, 409, 410, 425, 429, 503})

log: Final = logging.getLogger(__name__)
_PARENTS: Final = draw_parents(_SEED, _DRAWN_PARENTS)
_numbers: Final = itertools.count()


class CannotStartError(Exception):
    """A user could not be prepared; Locust shows the sentence among its exceptions."""


class Parent(FastHttpUser):
    """One phone."""

    connection_timeout = _REQUEST_SECONDS
    network_timeout = _REQUEST_SECONDS

    def on_start(self) -> None:
        """Find the release and read the server's clock. Where that cannot be, the whole run ends with a sentence."""
        try:
            found = self._ask("GET", "/v1/time", wire.TimeBody)
            self._clock_offset = found.now_ms / 1000.0 - time.time()
            self._release = self._find_release()
        except (CannotStartError, wire.UnreadableError) as error:
            _end_run(self.environment, str(error))
            raise gevent.GreenletExit from error
        self._opens_at = self._release.opens_at.timestamp()

    @task
    def evening(self) -> None:
        """Live one parent's evening, from signing in to the end."""
        number = next(_numbers)
        plan = _PARENTS[number % len(_PARENTS)]
        self._prepare(plan, number)
        # Who comes after the opening lives by the second of coming.
        self._began_at = max(self._opens_at, self._server_now())
        pools = sorted(self._release.pools, key=lambda pool: (pool.starts_at, pool.title, pool.id))
        ground = Ground(
            people=self._people,
            eligible=self._eligible,
            pools=tuple(pool.id for pool in pools),
            now=self._now,
            is_over=lambda: self._now() > _EVENING_SECONDS,
            new_claim_id=new_claim_id,
            stays_on=lambda _: None,
        )
        life = live(plan, ground, parent_rng(_SEED, number, "life"))
        try:
            step = next(life)
            while True:
                step = life.send(self._do(step))
        except StopIteration:
            gevent.sleep(_BETWEEN_LIVES_SECONDS)

    def _server_now(self) -> float:
        return time.time() + self._clock_offset

    def _now(self) -> float:
        return self._server_now() - self._began_at

    def _find_release(self) -> wire.ReleaseBody:
        if _RELEASE:
            try:
                return self._ask("GET", f"/v1/releases/{_RELEASE}", wire.ReleaseBody, name="/v1/releases/{id}")
            except wire.UnreadableError as error:
                raise CannotStartError(f"The release in CROWD_RELEASE cannot be read: {error}") from error
        for state in ("upcoming", "open"):
            page = self._ask("GET", f"/v1/releases?state={state}", wire.ReleasePage)
            if page.items:
                soonest = min(page.items, key=lambda item: item.opens_at)
                path = f"/v1/releases/{soonest.id}"
                return self._ask("GET", path, wire.ReleaseBody, name="/v1/releases/{id}")
        raise CannotStartError("No release is upcoming or open: publish one, or name it in CROWD_RELEASE.")

    def _prepare(self, plan: ParentPlan, number: int) -> None:
        """Sign in under a name of its own, register the children, fetch the pass."""
        code = f"demo-locust-{_RUN}-{number:06d}"
        signed = self._ask("POST", "/v1/auth/wechat", wire.SignedIn, {"code": code})
        self._bearer = {"Authorization": f"Bearer {signed.access_token}"}
        self._people = tuple(
            self._ask("POST", "/v1/me/people", wire.Identified, person_body(plan, child, datetime.now(UTC))).id
            for child in range(len(plan.children_age_months))
        )
        given = self._ask(
            "POST",
            f"/v1/releases/{self._release.id}/pass",
            wire.PassBody,
            {"people": self._people},
            name="/v1/releases/{id}/pass",
        )
        self._pass = {"Authorization": f"Pass {given.token}"}
        self._eligible: Mapping[str, frozenset[str]] = {person.id: frozenset(person.pools) for person in given.people}

    _bearer: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed; nobody is signed in at first

    def _ask(
        self, method: str, path: str, shape: type[wire.Shape], body: object = None, *, name: str | None = None
    ) -> wire.Shape:
        answer = self._send(method, path, self._bearer, None if body is None else wire.encode(body), name or path)
        if answer is None:
            raise CannotStartError(f"{method} {path}: no answer")
        return wire.read(answer, shape)

    def _send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, name: str) -> Answer | None:
        """Send one request under a name of Locust's statistics; None where nothing was heard."""
        sent = dict(headers)
        text = None if body is None else body.decode()
        if body is not None:
            sent["Content-Type"] = "application/json"
        with self.client.request(method, path, data=text, headers=sent, name=name, catch_response=True) as response:
            status = response.status_code
            if not status:
                response.failure("no answer")
                return None
            content: Any = response.content
            answer = Answer(status, _lower(response.headers), bytes(content or b""), 0.0)
            if status in _EXPECTED:
                response.success()
            else:
                response.failure(f"{status} {read_answer(answer).outcome}")
            return answer

    def _do(self, step: Step) -> Reply:
        match step:
            case Rest(until):
                gevent.sleep(max(0.0, until - self._now()))
                return NOTHING_HEARD
            case Look("time"):
                answer = self._send("GET", "/v1/time", {}, None, "/v1/time")
            case Look():
                return self._look_at_places()
            case Tap():
                return self._tap(step)
            case Ask(claim_id):
                answer = self._send("GET", f"/v1/claims/{claim_id}", self._pass, None, "/v1/claims/{id}")
            case GiveBack(claim_id):
                answer = self._send("DELETE", f"/v1/claims/{claim_id}", self._bearer, None, "/v1/claims/{id}")
            case _:
                assert_never(step)
        return NOTHING_HEARD if answer is None else read_answer(answer).reply

    def _look_at_places(self) -> Reply:
        path = f"/v1/releases/{self._release.id}/availability"
        answer = self._send("GET", path, {}, None, "/v1/releases/{id}/availability")
        if answer is None or not answer.body:
            return NOTHING_HEARD
        try:
            levels = wire.availability_decoder.decode(answer.body)
        except msgspec.DecodeError:
            return Reply(answer.status)
        return Reply(answer.status, left={pool.id: pool.left for pool in levels.pools})

    def _tap(self, tap: Tap) -> Reply:
        body = claim_body(self._release.id, tap.wish)
        path = f"/v1/claims/{tap.wish.claim_id}"
        if tap.at is not None:
            gevent.sleep(max(0.0, tap.at - self._now()))
        if tap.cut_after_seconds is not None:
            self._tap_and_hang_up(path, body, tap.cut_after_seconds)
            return NOTHING_HEARD
        taps = [gevent.spawn(self._send, "PUT", path, self._pass, body, "/v1/claims/{id}") for _ in range(tap.copies)]
        gevent.joinall(taps)
        answers = [answer for answer in (one.value for one in taps) if isinstance(answer, Answer)]
        return best_of([read_answer(answer).reply for answer in answers]) if answers else NOTHING_HEARD

    def _tap_and_hang_up(self, path: str, body: bytes, after_seconds: float) -> None:
        """Send the claim and close the line before the answer is read, as a phone in a lift does."""
        host = urlsplit(self.host or "")
        began_at = time.perf_counter()
        error: Exception | None = None
        try:
            # Locust has patched the socket module: this waits without holding up the others.
            with socket.create_connection((host.hostname or "", host.port or 80), _REQUEST_SECONDS) as line:
                head = f"PUT {host.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {host.netloc}\r\n"
                head += f"Authorization: {self._pass['Authorization']}\r\nContent-Type: application/json\r\n"
                line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                gevent.sleep(after_seconds)
        except OSError as trouble:
            error = trouble
        self.environment.events.request.fire(
            request_type="PUT",
            name="/v1/claims/{id} (reply lost)",
            response_time=(time.perf_counter() - began_at) * 1000,
            response_length=0,
            exception=error,
            context={},
        )


def _end_run(environment: Environment, sentence: str) -> None:
    """End the run with status 2. In the browser it only stops: the next run may find what was missing."""
    if environment.process_exit_code is not None or environment.runner is None:
        return
    log.error("%s", sentence)
    if environment.web_ui is not None:
        gevent.spawn(environment.runner.stop)
        return
    # From a greenlet of its own: ending the run ends the user that asked for it.
    environment.process_exit_code = 2
    gevent.spawn(environment.runner.quit)


def _lower(headers: Any) -> dict[bytes, bytes]:
    return {str(name).lower().encode(): str(value).encode() for name, value in dict(headers or {}).items()}
