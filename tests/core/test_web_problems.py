import asyncio
import contextlib
import logging

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.core.problems import Unavailable
from app.core.settings import Settings
from app.core.web.failures import problem_for
from app.main import create_api
from tests.conftest import serving
from tests.core import probe
from tests.core.test_web_bodies import problem_of

pytestmark = pytest.mark.anyio


async def test_an_unknown_path_is_not_found(client: httpx2.AsyncClient) -> None:
    problem_of(await client.get("/v1/nothing"), 404, "not_found")


async def test_a_trailing_slash_is_another_path(client: httpx2.AsyncClient) -> None:
    problem_of(await client.get("/v1/time/"), 404, "not_found")


async def test_a_method_that_a_path_does_not_take_names_those_it_takes(probed: httpx2.AsyncClient) -> None:
    answer = await probed.put("/probe/items/0197a3c2-5b1e-7c40-9a52-0d6f1f0b7f11")
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "DELETE, GET"


@pytest.mark.parametrize("item_id", ["7", "%00", "%ed%a0%80", "'%20OR%201=1", "x" * 5_000])
async def test_an_id_that_is_none_is_refused(probed: httpx2.AsyncClient, item_id: str) -> None:
    problem_of(await probed.get(f"/probe/items/{item_id}"), 422, "validation_failed")


async def test_a_defect_is_told_without_its_values(
    probed: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = await probed.get("/probe/defect", headers={"X-Request-Id": "phone-0001"})
    problem_of(answer, 500, "internal_error")
    assert answer.headers["X-Request-Id"] == "phone-0001"
    assert "request_failed" in caplog.text
    assert "phone-0001" in caplog.text
    assert "KeyError" in caplog.text
    assert "儿童" not in caplog.text


@pytest.mark.parametrize("given", ["short", "x" * 65, 'forged", "level": "error', "zeile\u00e4\u00f6\u00fc12"])
async def test_a_request_id_that_is_no_token_is_replaced(client: httpx2.AsyncClient, given: str) -> None:
    answer = await client.get("/v1/time", headers=[(b"X-Request-Id", given.encode())])
    assert answer.headers["X-Request-Id"] != given
    assert len(answer.headers["X-Request-Id"]) == 24


async def test_a_value_that_the_database_cannot_hold_is_the_callers(probed: httpx2.AsyncClient) -> None:
    problem_of(await probed.get("/probe/text", params={"text": "a\x00b"}), 422, "validation_failed")


async def test_a_statement_that_takes_too_long_is_unavailable(probed: httpx2.AsyncClient) -> None:
    answer = await probed.get("/probe/slow")
    document = problem_of(answer, 503, "unavailable")
    assert document["retryable"] is True
    assert 2_000 <= document["retry_after_ms"] <= 3_000
    assert answer.headers["Retry-After"] in {"2", "3"}


def test_a_connection_lost_where_the_driver_did_not_expect_it_is_an_outage() -> None:
    assert isinstance(problem_for(asyncpg.InternalClientError("got result for unknown protocol state")), Unavailable)


async def test_a_broken_constraint_is_told_by_its_name(probed: httpx2.AsyncClient) -> None:
    assert (await probed.post("/probe/mapped-units/钟楼")).status_code == 200
    problem_of(await probed.post("/probe/mapped-units/钟楼"), 409, "name_taken")


async def test_a_broken_constraint_that_nobody_mapped_leaks_nothing(
    probed: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await probed.post("/probe/unmapped-units/鼓楼")).status_code == 200
    with caplog.at_level(logging.INFO):
        answer = await probed.post("/probe/unmapped-units/鼓楼")
    assert "鼓楼" not in answer.text
    problem_of(answer, 409, "conflict")
    assert "uq_unit_name" in caplog.text
    assert "鼓楼" not in caplog.text


async def test_answers_carry_the_headers_that_all_carry(client: httpx2.AsyncClient) -> None:
    for path in ("/v1/time", "/v1/nothing", "/health/live"):
        headers = (await client.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Request-Id"]


async def test_log_lines_name_the_route_and_nothing_of_the_request(
    probed: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="app"):
        await probed.get(
            "/probe/items/0197a3c2-5b1e-7c40-9a52-0d6f1f0b7f11?token=sesame", headers={"Authorization": "Bearer sesame"}
        )
    assert "/probe/items/{item_id}" in caplog.text
    assert "0197a3c2" not in caplog.text
    assert "sesame" not in caplog.text


async def test_ready_names_what_does_not_answer(api: FastAPI, settings: Settings) -> None:
    gone = settings.model_copy(update={"database_url": SecretStr("postgresql://nobody@127.0.0.1:1/nothing")})
    async with api.router.lifespan_context(api):
        from app.core.db import create_engine  # noqa: PLC0415 - only here

        healthy, api.state.engine = api.state.engine, create_engine(gone)
        try:
            async with httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app=api), base_url="http://clocktower.test"
            ) as client:
                answer = await client.get("/health/ready")
                live = await client.get("/health/live")
        finally:
            await api.state.engine.dispose()
            api.state.engine = healthy
    assert problem_of(answer, 503, "unavailable")["down"] == ["postgresql"]
    assert live.status_code == 200


async def _raw(base_url: str, *parts: bytes) -> bytes:
    """Send bytes as they are and return what came back until the server hung up, politely or not."""
    host, _, port = base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    # A server that has said no need not read what follows: it may reset the connection.
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(10):
            while more := await reader.read(65_536):
                received += more
    writer.close()
    return received


HEAD = b"POST /probe/bodies HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"


async def test_bodies_over_a_real_socket(settings: Settings) -> None:
    def make() -> FastAPI:
        api = create_api(settings)
        api.include_router(probe.router)
        return api

    with serving(make) as base_url:
        announced = await _raw(base_url, HEAD + b"Content-Length: 99999999\r\n\r\n")
        chunk = b"ffff\r\n" + b" " * 0xFFFF + b"\r\n"
        chunked = await _raw(base_url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, b"0\r\n\r\n")
        # Says less than it sends: what is beyond belongs to no request.
        lying = await _raw(base_url, HEAD + b'Content-Length: 13\r\n\r\n{"title":"x"}' + b" " * 100)
        nested = await _raw(base_url, HEAD + b"Content-Length: 60000\r\n\r\n" + b"[" * 60_000)
    assert announced.startswith(b"HTTP/1.1 413 ")
    assert chunked.startswith(b"HTTP/1.1 413 ")
    assert lying.startswith(b"HTTP/1.1 200 ")
    assert nested.startswith(b"HTTP/1.1 400 ")
    assert b'"body_too_large"' in announced
    assert b'"body_too_large"' in chunked
