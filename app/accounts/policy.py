"""Who may, and what follows from what is stored: pure functions, default deny."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum, auto, unique
from typing import Final
from uuid import UUID

from app.core.clock import TOWN_ZONE

# A phone that lost the reply asks again a few times; more tokens from one within the grace are no lost reply.
REFRESH_SIBLINGS_MAX: Final = 10


@unique
class Relation(StrEnum):
    """What a person is to the account that registers them."""

    CHILD = "child"
    SELF = "self"
    OTHER = "other"


@unique
class Purpose(StrEnum):
    """What a guardian may consent to, each by itself: refusing a photo never costs a place."""

    BOOKING = "booking"
    PHOTO = "photo"
    STATISTICS = "statistics"


@unique
class Role(StrEnum):
    """What an account may be in the town, beyond a visitor. Every account is a resident."""

    RESIDENT = "resident"
    MEMBER = "member"
    ORG_REP = "org_rep"
    STAFF = "staff"
    MEDIATOR = "mediator"
    CLERK = "clerk"
    TOWN_OFFICER = "town_officer"
    INSPECTOR = "inspector"
    OPERATOR = "operator"


@unique
class ScopeKind(StrEnum):
    """What a role can be limited to."""

    STATION = "station"
    UNIT = "unit"
    GROUP = "group"


# The scopes that each role can be granted with; None stands for everywhere. A resident is never granted: all are.
SCOPES: Final[Mapping[Role, tuple[ScopeKind | None, ...]]] = {
    Role.RESIDENT: (),
    Role.MEMBER: (ScopeKind.GROUP,),
    Role.ORG_REP: (ScopeKind.STATION, ScopeKind.GROUP),
    Role.STAFF: (None, ScopeKind.STATION),
    Role.MEDIATOR: (None, ScopeKind.STATION),
    Role.CLERK: (None, ScopeKind.STATION, ScopeKind.UNIT, ScopeKind.GROUP),
    Role.TOWN_OFFICER: (None,),
    Role.INSPECTOR: (None, ScopeKind.UNIT, ScopeKind.STATION),
    Role.OPERATOR: (None,),
}


@dataclass(frozen=True, slots=True)
class RoleGrantView:
    """One standing grant. `scope_id` is None where the role holds everywhere."""

    id: UUID
    account_id: UUID
    role: Role
    scope_kind: ScopeKind | None
    scope_id: UUID | None
    granted_at: datetime


def holds(
    grants: Iterable[RoleGrantView],
    roles: Collection[Role],
    *,
    station_id: UUID | None = None,
    any_scope: bool = False,
) -> bool:
    """Tell whether one of the grants gives one of the roles where it is asked for.

    A grant for everywhere always does. One for a station does so for that `station_id` only, and otherwise no
    limited grant does, unless `any_scope` says that holding the role anywhere is enough.
    """
    for grant in grants:
        if grant.role not in roles:
            continue
        if grant.scope_kind is None or any_scope:
            return True
        if grant.scope_kind is ScopeKind.STATION and station_id is not None and grant.scope_id == station_id:
            return True
    return False


def role_names(roles: Iterable[str]) -> list[str]:
    """Return what an account is, each role once, scopes left out: everybody is a resident."""
    return [Role.RESIDENT, *sorted(set(roles) - {Role.RESIDENT})]


def is_future_month(birth_month: str, *, now: datetime) -> bool:
    """Tell whether a month (`2016-05`) has not begun yet in the town."""
    return birth_month > now.astimezone(TOWN_ZONE).strftime("%Y-%m")


@dataclass(frozen=True, slots=True)
class RefreshFacts:
    """One refresh token as it is stored, with what decides about it. `siblings`: tokens given out since its use."""

    family_id: UUID
    account_id: UUID
    account_blocked: bool
    expires_at: datetime
    used_at: datetime | None
    revoked: bool
    siblings: int


@unique
class RefreshVerdict(StrEnum):
    """What is to be done with a refresh token that was sent."""

    ROTATE = auto()
    BLOCKED = auto()
    INVALID = auto()
    REUSED = auto()


def judge_refresh(facts: RefreshFacts, *, now: datetime, grace: timedelta) -> RefreshVerdict:
    """Decide about a refresh token. One that was used is good again within the grace: its reply may have been lost."""
    if facts.revoked or facts.expires_at <= now:
        return RefreshVerdict.INVALID
    if facts.used_at is not None and (now - facts.used_at >= grace or facts.siblings >= REFRESH_SIBLINGS_MAX):
        return RefreshVerdict.REUSED
    return RefreshVerdict.BLOCKED if facts.account_blocked else RefreshVerdict.ROTATE


@dataclass(frozen=True, slots=True)
class InvitationFacts:
    """One invitation as it is stored, with what decides whether this account may accept it."""

    id: UUID
    person_id: UUID
    expires_at: datetime
    accepted_by: UUID | None
    accepted: bool
    is_guardian: bool
    guardians: int
    people: int


@unique
class InvitationVerdict(StrEnum):
    """What is to be done with an invitation that was sent in."""

    ACCEPT = auto()
    ACCEPTED_BEFORE = auto()
    USED = auto()
    ALREADY_GUARDIAN = auto()
    EXPIRED = auto()
    GUARDIANS_FULL = auto()
    PEOPLE_FULL = auto()


def judge_invitation(
    facts: InvitationFacts, *, account_id: UUID, now: datetime, guardian_limit: int, people_limit: int
) -> InvitationVerdict:
    """Decide about an invitation. Whoever accepted it may send it again: the reply may have been lost."""
    if facts.accepted:
        mine = facts.accepted_by == account_id and facts.is_guardian
        return InvitationVerdict.ACCEPTED_BEFORE if mine else InvitationVerdict.USED
    if facts.is_guardian:
        return InvitationVerdict.ALREADY_GUARDIAN
    if facts.expires_at <= now:
        return InvitationVerdict.EXPIRED
    if facts.guardians >= guardian_limit:
        return InvitationVerdict.GUARDIANS_FULL
    return InvitationVerdict.PEOPLE_FULL if facts.people >= people_limit else InvitationVerdict.ACCEPT
