"""Bodies of the family."""

from typing import Annotated, Final
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from app.accounts.family.service import PersonStatement
from app.accounts.policy import Purpose, Relation
from app.core.schemas import Code, RequestModel, ResponseModel, ShortText, TownInstant

_PURPOSE_ORDER: Final = {purpose: place for place, purpose in enumerate(Purpose)}


def _each_once(purposes: list[Purpose]) -> list[Purpose]:
    # In one order, so that the same consent is recognised however it was written.
    return sorted(set(purposes), key=_PURPOSE_ORDER.__getitem__)


Nickname = Annotated[
    ShortText,
    AfterValidator(str.strip),
    Field(description="Whatever the family calls them; no real name is asked for.", examples=["小满"]),
]
BirthMonth = Annotated[
    str,
    StringConstraints(pattern=r"^(19|20)[0-9]{2}-(0[1-9]|1[0-2])$"),
    Field(description="Year and month, from 1900-01 to the present month.", examples=["2016-05"]),
]
InvitationToken = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]


class ConsentGiven(RequestModel):
    """Which version of the text the guardian saw, and what they agree to; no purposes withdraw the consent."""

    version: Annotated[Code, Field(examples=["2026-09"])]
    purposes: Annotated[
        list[Purpose], Field(max_length=2 * len(Purpose), examples=[["booking"]]), AfterValidator(_each_once)
    ]


class PersonBody(RequestModel):
    """Everything that a guardian states about a person."""

    nickname: Nickname
    birth_month: BirthMonth
    relation: Relation
    resident_unit_id: UUID | None = None
    consent: ConsentGiven

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "nickname": "小满",
                    "birth_month": "2016-05",
                    "relation": "child",
                    "resident_unit_id": None,
                    "consent": {"version": "2026-09", "purposes": ["booking"]},
                }
            ]
        }
    )

    def stated(self) -> PersonStatement:
        """Return the statement that the rules are applied to."""
        return PersonStatement(
            nickname=self.nickname,
            birth_month=self.birth_month,
            relation=self.relation,
            resident_unit_id=self.resident_unit_id,
            consent_version=self.consent.version,
            consent_purposes=self.consent.purposes,
        )


class InvitationAcceptance(RequestModel):
    """What the second guardian says when accepting."""

    token: Annotated[InvitationToken, Field(examples=["mK5nC0R3vK1yJwQv0lV2xH0nq0yXh2aB"])]
    relation: Relation
    consent: ConsentGiven


class ConsentShown(ResponseModel):
    """The caller's own consent, and since when it stands."""

    version: str
    purposes: list[Purpose]
    given_at: TownInstant


class PersonShown(ResponseModel):
    """Somebody whom the caller may book for."""

    id: UUID
    nickname: str
    birth_month: str
    relation: Relation
    resident_unit_id: UUID | None
    consent: ConsentShown
    guardians: Annotated[int, Field(description="How many accounts may book for this person.", examples=[1])]
    created_at: TownInstant


class PeoplePage(ResponseModel):
    """People of the caller, in the order of their registration."""

    items: list[PersonShown]
    next: str | None


class InvitationShown(ResponseModel):
    """An invitation; its token is told this once."""

    token: str
    expires_at: TownInstant
