"""The operator's side of a rehearsal, over the same API: makes a release, publishes it, reads the audit afterwards."""

from datetime import UTC, datetime, timedelta
from typing import Final

from loadtest import wire
from loadtest.http1 import Network, Phone
from loadtest.prepare import CannotRunError, call

_REQUEST_SECONDS: Final = 30.0
# Whoever holds it may make a release, publish it and read the audit.
_ROLE: Final = "operator"
_RELEASE_STAYS_OPEN: Final = timedelta(hours=6)
_PERSON_LIMIT: Final = 2
_ACCOUNT_LIMIT: Final = 3

# The town's own figures for one release: 3×35 + 8×18 + 3×17 = 300 places in 14 sessions.
CAPACITIES: Final = (35, 35, 35, 18, 18, 18, 18, 18, 18, 18, 18, 17, 17, 17)
# The crowd's children are 6 to 11; most sessions take them all, four only the younger or the older.
_AGES: Final = ((5, 13),) * 10 + ((5, 9), (5, 9), (9, 13), (9, 13))
# Day after the opening and hour (UTC). Three sessions share one morning and two overlap by half: a child who wants
# both of those meets the clash in time.
_SLOTS: Final = (
    (3, 1.0),
    (3, 1.0),
    (3, 1.0),
    (3, 6.0),
    (4, 1.0),
    (4, 2.0),
    (4, 6.0),
    (5, 1.0),
    (5, 6.0),
    (6, 1.0),
    (6, 6.0),
    (7, 1.0),
    (7, 6.0),
    (8, 1.0),
)
_SESSION_HOURS: Final = 1.5
# Every second session keeps a short queue, so that both ways of giving a place back are seen: hand to hand to the
# first waiter, and back to whoever looks.
_WAITLIST_LIMIT: Final = 5


def rehearsal_release(station_ids: list[str], opens_at: datetime, title: str) -> dict[str, object]:
    """Build the body of the rehearsal's release: 14 sessions, 300 places, spread over the stations."""
    day = opens_at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    sessions: list[dict[str, object]] = []
    for number, (capacity, ages, (days, hour)) in enumerate(zip(CAPACITIES, _AGES, _SLOTS, strict=True)):
        starts_at = day + timedelta(days=days, hours=hour)
        sessions.append(
            {
                "station_id": station_ids[number % len(station_ids)],
                "title": f"演练课程{number + 1:02d}",
                "summary": "A rehearsal's session; nobody need come.",
                "starts_at": starts_at.isoformat(),
                "ends_at": (starts_at + timedelta(hours=_SESSION_HOURS)).isoformat(),
                "room": f"{number % 4 + 1}01",
                "capacity": capacity,
                "age_min": ages[0],
                "age_max": ages[1],
                "waitlist_limit": _WAITLIST_LIMIT if number % 2 else 0,
                "resident_unit_id": None,
            }
        )
    return {
        "title": title,
        "mode": "grab",
        "opens_at": opens_at.isoformat(),
        "closes_at": (opens_at + _RELEASE_STAYS_OPEN).isoformat(),
        "person_limit": _PERSON_LIMIT,
        "account_limit": _ACCOUNT_LIMIT,
        "rules": "演练：名额先到先得，可随时退还。",
        "sessions": sessions,
    }


class Operator:
    """An account with the role `operator`, signed in. Every method raises `CannotRunError` with a sentence."""

    def __init__(self, network: Network, access_token: str) -> None:
        self._phone = Phone(network, limit_seconds=_REQUEST_SECONDS)
        self._access_token = access_token

    @classmethod
    async def sign_in(cls, network: Network, code: str) -> "Operator":
        """Sign in with a WeChat code; the account must have been granted the role beforehand."""
        phone = Phone(network, limit_seconds=_REQUEST_SECONDS)
        answer = await call(phone, "POST", "/v1/auth/wechat", body={"code": code})
        try:
            signed_in = wire.read(answer, wire.SignedIn)
        except wire.UnreadableError as error:
            raise CannotRunError(
                f"The operator's code signs nobody in ({error}). Where the fake WeChat answers, a code is demo-<name>; "
                "elsewhere it is what wx.login gave, good for one use within five minutes."
            ) from error
        if _ROLE not in signed_in.account.roles:
            raise CannotRunError(
                f"The operator's code signs in an account without the role {_ROLE}: run `clocktower grant <openid> "
                f"{_ROLE}` beside the server and rehearse again. With the fake WeChat the open id is the code itself."
            )
        return cls(network, signed_in.access_token)

    async def _ask(self, method: str, path: str, shape: type[wire.Shape], what: str, body: object = None) -> wire.Shape:
        answer = await call(self._phone, method, path, token=self._access_token, body=body)
        return _shape(answer, shape, what)

    async def station_ids(self) -> list[str]:
        """Answer some service stations of the town; at least one."""
        path = "/v1/stations?kind=service_station&limit=100"
        page = await self._ask("GET", path, wire.StationPage, "read the stations")
        if not page.items:
            raise CannotRunError("The town has no service station: run `clocktower seed` first.")
        return [station.id for station in page.items]

    async def server_now(self) -> datetime:
        """Answer the server's time."""
        now_ms = (await self._ask("GET", "/v1/time", wire.TimeBody, "read the time")).now_ms
        return datetime.fromtimestamp(now_ms / 1000.0, UTC)

    async def open_release(self, opens_at: datetime, title: str) -> str:
        """Create and publish the rehearsal's release; answer its id."""
        body = rehearsal_release(await self.station_ids(), opens_at, title)
        made = await self._ask("POST", "/v1/releases", wire.Identified, "make a release", body)
        path = f"/v1/releases/{made.id}/publish"
        await self._ask("POST", path, wire.Identified, "publish the release")
        return made.id

    async def audit(self, release_id: str) -> wire.Audit:
        """Read what PostgreSQL and the gate hold."""
        return await self._ask("GET", f"/v1/releases/{release_id}/audit", wire.Audit, "read the audit")


def _shape(answer: wire.Answer, shape: type[wire.Shape], what: str) -> wire.Shape:
    try:
        return wire.read(answer, shape)
    except wire.UnreadableError as error:
        raise CannotRunError(f"The operator could not {what}: {error}") from error
