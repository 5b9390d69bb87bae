"""A router whose only purpose is to be refused, to fail and to be sent again."""

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response
from pydantic import Field
from sqlalchemy import text

from app.core.auth import Caller
from app.core.constraints import constraint_problems
from app.core.ids import new_id
from app.core.problems import Conflict, Problem
from app.core.schemas import AwareInstant, LongText, RequestModel, ShortText
from app.core.web.routing import ApiRouter
from app.core.web.transactions import Read, Tx

router = ApiRouter(prefix="/probe")


class NameTaken(Problem):
    code = "name_taken"
    status = 409
    title_en = "The name is taken"
    title_zh = "名称已被使用"


class Person(RequestModel):
    id: UUID
    nickname: ShortText


class Body(RequestModel):
    title: ShortText
    note: LongText = ""
    count: int = 1
    open: bool = False
    at: AwareInstant | None = None
    people: Annotated[list[Person], Field(default_factory=list)]


@router.post("/bodies")
async def take_body(body: Body) -> Body:
    return body


@router.get("/numbers")
async def take_number(limit: Annotated[int, Query(ge=1, le=100)] = 50) -> int:
    return limit


@router.get("/items/{item_id}")
async def read_item(item_id: UUID) -> UUID:
    return item_id


@router.delete("/items/{item_id}")
async def delete_item(item_id: UUID) -> UUID:
    return item_id


@router.get("/defect")
async def fail() -> None:
    secret = "儿童丙0021"
    raise KeyError(secret)


@router.get("/text")
async def read_text(text_: Annotated[str, Query(alias="text")], db: Read) -> str:
    return str(await db.scalar(text("SELECT CAST(:text AS text)"), {"text": text_}))


@router.get("/slow")
async def read_slowly(db: Read) -> None:
    await db.execute(text("SET statement_timeout = '1ms'"))
    await db.execute(text("SELECT pg_sleep(1)"))


_ADD_UNIT = text("INSERT INTO unit (id, name, kind) VALUES (:id, :name, 'village')")


async def add_unit(db: Tx, name: str) -> UUID:
    unit_id = new_id()
    await db.execute(_ADD_UNIT, {"id": unit_id, "name": name})
    return unit_id


@router.post("/mapped-units/{name}")
async def add_unit_mapped(name: str, db: Tx) -> UUID:
    with constraint_problems({"uq_unit_name": NameTaken}):
        return await add_unit(db, name)


@router.post("/unmapped-units/{name}")
async def add_unit_unmapped(name: str, db: Tx) -> UUID:
    return await add_unit(db, name)


class Named(RequestModel):
    name: ShortText


@router.post("/units", status_code=201)
async def add_unit_signed_in(body: Named, _caller: Caller, db: Tx) -> dict[str, str]:
    return {"id": str(await add_unit(db, body.name)), "name": body.name}


@router.post("/refused-units")
async def add_unit_and_refuse(body: Named, _caller: Caller, db: Tx) -> None:
    await add_unit(db, body.name)
    raise Conflict


@router.delete("/units/{name}", status_code=204)
async def remove_unit(name: str, _caller: Caller, db: Tx) -> Response:
    await db.execute(text("DELETE FROM unit WHERE name = :name"), {"name": name})
    return Response(status_code=204)
