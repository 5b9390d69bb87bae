"""Who may do what, operation by operation: the one table that the sweep of all operations and all roles goes by.

An operation that is not in it fails the sweep, so whoever adds one has to say here who may.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto, unique
from typing import Final, Literal, assert_never

from tests.security.town import Caller, Town


@unique
class May(Enum):
    """Who is served."""

    # Also without signing in. What is private is not there, or lies behind a secret in the body.
    ANYBODY = auto()
    # Everybody who has signed in, about themselves.
    SIGNED_IN = auto()
    # The same, unless blocked: what is given here is new.
    IN_GOOD_STANDING = auto()
    # The family alone.
    FAMILY = auto()
    # Who holds the invitation's token, and no account that is blocked.
    INVITED = auto()
    # Who works at a station of the release, or everywhere, and operators.
    STAFF = auto()
    # Who works at every station of the release, and operators.
    STAFF_EVERYWHERE = auto()
    OPERATOR = auto()


# Which release the ids of an operation name: open; one that only staff knows; published for later; or one of both
# stations, published for later.
WhichRelease = Literal["open", "draft", "upcoming", "shared"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may, and what all others hear who are signed in and in good standing.

    `granted` is what those who may hear, where it is not the first success that the document declares.
    `gives_new`: the family itself is refused while its account is blocked. `tells`: which facts of the family those who
    may are told.
    """

    may: May
    refusal: int = 403
    release: WhichRelease = "open"
    granted: int | None = None
    gives_new: bool = False
    tells: frozenset[str] = frozenset()

    def serves(self, caller: Caller, town: Town) -> bool:
        """Tell whether somebody who is not of the family is to be served."""
        match self.may:
            case May.ANYBODY:
                return True
            case May.SIGNED_IN:
                return caller.account_id is not None
            case May.IN_GOOD_STANDING:
                return caller.account_id is not None and caller.is_in_good_standing
            case May.FAMILY | May.INVITED:
                return False
            case May.STAFF:
                return caller.is_operator or caller.is_staff_at(town.here)
            case May.STAFF_EVERYWHERE:
                return caller.is_operator or (caller.is_staff_at(town.here) and caller.is_staff_at(town.elsewhere))
            case May.OPERATOR:
                return caller.is_operator
            case _:
                assert_never(self.may)


_PUBLIC: Final = (Rule(May.ANYBODY),)
_OWN: Final = (Rule(May.SIGNED_IN),)
_FAMILY: Final = (Rule(May.FAMILY, refusal=404),)
_OPERATOR: Final = (Rule(May.OPERATOR),)
_CHANGES_A_RELEASE: Final = (
    # Who may not know of a draft hears that there is none.
    Rule(May.STAFF, refusal=404, release="draft"),
    Rule(May.STAFF, release="upcoming"),
    Rule(May.STAFF_EVERYWHERE, release="shared"),
)
_LOOKS_AFTER_A_RELEASE: Final = (
    Rule(May.STAFF, refusal=404, release="draft"),
    Rule(May.STAFF, release="open"),
)

RULES: Final[Mapping[str, tuple[Rule, ...]]] = {
    "GET /v1/time": _PUBLIC,
    "GET /health/live": _PUBLIC,
    "GET /health/ready": _PUBLIC,
    # The secret is in the body: whoever has none gets nothing.
    "POST /v1/auth/wechat": _PUBLIC,
    "POST /v1/auth/refresh": (Rule(May.ANYBODY, granted=401),),
    "POST /v1/auth/logout": _PUBLIC,
    "GET /v1/me": _OWN,
    "POST /v1/roles": _OPERATOR,
    "DELETE /v1/roles/{grant_id}": _OPERATOR,
    "GET /v1/accounts/{account_id}/roles": (Rule(May.OPERATOR, tells=frozenset({"grant"})),),
    "POST /v1/me/people": (Rule(May.IN_GOOD_STANDING),),
    "GET /v1/me/people": _OWN,
    "GET /v1/me/people/{person_id}": _FAMILY,
    "PUT /v1/me/people/{person_id}": _FAMILY,
    "DELETE /v1/me/people/{person_id}": _FAMILY,
    "PUT /v1/me/people/{person_id}/consent": _FAMILY,
    "POST /v1/me/people/{person_id}/invitations": (Rule(May.FAMILY, refusal=404, gives_new=True),),
    "POST /v1/me/invitations/accept": (Rule(May.INVITED, refusal=404),),
    "GET /v1/units": _PUBLIC,
    "POST /v1/units": _OPERATOR,
    "GET /v1/stations": _PUBLIC,
    "POST /v1/stations": _OPERATOR,
    "GET /v1/stations/{station_id}": _PUBLIC,
    "PUT /v1/stations/{station_id}": (Rule(May.STAFF),),
    "GET /v1/activities": _PUBLIC,
    "POST /v1/releases": (Rule(May.STAFF),),
    "GET /v1/releases": _PUBLIC,
    "GET /v1/releases/{release_id}": (*_PUBLIC, Rule(May.STAFF, refusal=404, release="draft")),
    "PUT /v1/releases/{release_id}": _CHANGES_A_RELEASE,
    "POST /v1/releases/{release_id}/publish": _CHANGES_A_RELEASE,
    "GET /v1/releases/{release_id}/audit": _LOOKS_AFTER_A_RELEASE,
    "GET /v1/releases/{release_id}/changes": _LOOKS_AFTER_A_RELEASE,
    "PUT /v1/pools/{pool_id}/capacity": (
        Rule(May.STAFF, refusal=404, release="draft"),
        Rule(May.STAFF, release="upcoming"),
    ),
    "POST /v1/releases/{release_id}/pass": (Rule(May.FAMILY, refusal=404, gives_new=True),),
    "GET /v1/releases/{release_id}/availability": _PUBLIC,
    "GET /v1/me/claims": _OWN,
    "GET /v1/claims/{claim_id}": _FAMILY,
    # A pass for other people, however genuine, is no pass for these.
    "PUT /v1/claims/{claim_id}": (Rule(May.FAMILY, refusal=403),),
    "DELETE /v1/claims/{claim_id}": _FAMILY,
    "DELETE /v1/bookings/{booking_id}": _FAMILY,
}
