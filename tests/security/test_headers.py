"""What answers carry besides their body, whoever wrote them: from a process as it is deployed."""

import asyncio
from collections.abc import Generator, Mapping
from typing import Final

import httpx2
import pytest

from app.core.embedded import Engines
from app.core.ids import new_id
from app.core.settings import Settings
from tests.conftest import make_settings
from tests.contract.line import Heard, connected
from tests.races.servers import serving_processes

pytestmark = pytest.mark.anyio

COMMON: Final = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer"}
# Nobody has to know what we are made of.
TALKATIVE: Final = frozenset({"server", "x-powered-by", "via"})


@pytest.fixture(scope="module")
def deployed(database_url: str, engines: Engines, fake_wechat_url: str) -> Generator[str]:
    settings: Settings = make_settings(database_url, engines.redis_url, fake_wechat_url)
    with serving_processes(settings, count=1) as (server,):
        yield server.address


def _requests() -> Mapping[str, tuple[str, str, Mapping[str, str]]]:
    """Return one request for each way in which an answer comes about."""
    json = {"content-type": "application/json"}
    return {
        "the time": ("GET", "/v1/time", {}),
        "a probe": ("GET", "/health/live", {}),
        "a list that all may read": ("GET", "/v1/releases", {}),
        "a refusal of the application": ("GET", "/v1/me", {}),
        "a refusal of the gate": ("PUT", f"/v1/claims/{new_id()}", json),
        "a poll of nothing": ("GET", f"/v1/releases/{new_id()}/availability", {}),
        "no path": ("GET", "/nothing/<script>alert(1)</script>", {}),
        "another method": ("PATCH", "/v1/me", json),
        "a wrong body": ("POST", "/v1/auth/wechat", json),
        "the page of errors": ("GET", "/docs/errors", {}),
        "the docs": ("GET", "/docs", {}),
        "the document": ("GET", "/openapi.json", {}),
        "a traversal": ("GET", "/static/..%2f..%2f..%2fetc/passwd", {}),
        "no address of ours": ("GET", "//evil.example/%0d%0aSet-Cookie:a=b", {}),
    }


REQUESTS: Final = _requests()


@pytest.mark.parametrize("name", REQUESTS)
async def test_every_answer_is_guarded_and_none_tells_what_we_are_made_of(deployed: str, name: str) -> None:
    method, path, headers = REQUESTS[name]
    async with httpx2.AsyncClient(base_url=deployed, timeout=30) as client:
        answer = await client.request(method, path, headers=headers)
    assert answer.headers.items() >= COMMON.items()
    assert not TALKATIVE & answer.headers.keys()
    assert "set-cookie" not in answer.headers
    assert answer.status_code < 500
    for trace in ("Traceback", "site-packages", 'File "', "/app/"):
        assert trace not in answer.text
    assert "<script>alert" not in answer.text
    assert "root:" not in answer.text


async def test_what_belongs_to_somebody_is_stored_nowhere_on_its_way(deployed: str) -> None:
    async with httpx2.AsyncClient(base_url=deployed, timeout=30) as client:
        signed_in = await client.post("/v1/auth/wechat", json={"code": f"demo-{new_id().hex}"})
        client.headers["authorization"] = f"Bearer {signed_in.json()['access_token']}"
        paths = ("/v1/me", "/v1/me/people", "/v1/me/claims", f"/v1/claims/{new_id()}", f"/v1/me/people/{new_id()}")
        answers = [signed_in, *[await client.get(path) for path in paths]]
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
async def test_no_page_of_another_origin_may_ask_or_read(deployed: str, origin: str) -> None:
    """Mini-programs need no CORS; a website would have to be let in on purpose."""
    asked = {
        "origin": origin,
        "access-control-request-method": "PUT",
        "access-control-request-headers": "authorization",
    }
    async with httpx2.AsyncClient(base_url=deployed, timeout=30) as client:
        for method in ("OPTIONS", "GET"):
            for path in ("/v1/me", "/v1/releases", f"/v1/claims/{new_id()}", f"/v1/releases/{new_id()}/availability"):
                answer = await client.request(method, path, headers=asked)
                assert not [name for name in answer.headers if name.startswith("access-control-")], (method, path)
                assert method == "GET" or answer.status_code == 405


INJECTED: Final = (
    "phone-0001%0d%0aset-cookie:a=b",
    "phone-0001\x85set-cookie:a=b",
    "phone-0001\tset-cookie:a=b",
    'phone-0001","level":"error',
    "phone-0001\xe2\x80\xa8x",
)


@pytest.mark.parametrize("given", INJECTED)
async def test_an_id_of_the_callers_adds_no_header_and_no_line(deployed: str, given: str) -> None:
    for path in ("/v1/me", f"/v1/claims/{new_id()}"):
        fields = f"host: a\r\nx-request-id: {given}\r\naccept-language: {given}\r\ncontent-length: 0\r\n"
        head = f"PUT {path} HTTP/1.1\r\n{fields}\r\n"
        async with asyncio.timeout(20), connected(deployed) as line:
            heard: Heard = await line.ask(head.encode("latin-1"))
        assert "set-cookie" not in heard.headers
        assert heard.headers["x-request-id"].isalnum()
        assert "phone-0001" not in heard.body.decode() + repr(heard.headers)
