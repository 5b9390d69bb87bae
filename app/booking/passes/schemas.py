"""Bodies of the passes."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from app.core.schemas import RequestModel, ResponseModel

# A pass may name a whole family, more than one claim can.
PEOPLE_MAX = 20


class PassRequest(RequestModel):
    """For whom a pass is wanted."""

    people: Annotated[
        list[UUID],
        Field(min_length=1, max_length=PEOPLE_MAX, description="Ids of the family's people, each once."),
    ]


class RefusedPool(ResponseModel):
    """A pool that a person may not claim, and why."""

    pool: UUID
    code: Literal["too_young", "too_old", "not_resident", "no_consent"]


class PassPersonView(ResponseModel):
    """One person of a pass."""

    id: UUID
    pools: list[UUID] = Field(description="The pools that this person may claim.")
    refused: list[RefusedPool]
    delay_s: int = Field(description="Seconds after the opening from which on this person may claim.")


class PassResponse(ResponseModel):
    """A pass. Send it with the grab: `Authorization: Pass <pass>`."""

    pass_: str = Field(serialization_alias="pass")
    expires_at: datetime
    opens_at: datetime
    server_time: datetime
    people: list[PassPersonView]
