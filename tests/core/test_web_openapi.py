import re

import httpx2
import pytest
from fastapi import FastAPI

from app.api import ERRORS_FILE
from app.core.openapi import Document, every_problem, merge_paths, problems
from app.core.problems import Conflict, NotFound, Unavailable
from app.core.web.errors_page import markdown_table

pytestmark = pytest.mark.anyio
METHODS = {"get", "put", "post", "delete"}


def operations(api: FastAPI) -> list[tuple[str, str, Document]]:
    return [
        (method, path, operation)
        for path, item in api.openapi()["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def test_every_operation_declares_its_problems_with_an_example(api: FastAPI) -> None:
    for method, path, operation in operations(api):
        responses = operation["responses"]
        assert {"500", "503"} <= set(responses), (method, path)
        for status, response in responses.items():
            if int(status) < 400:
                continue
            content = response["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, (method, path, status)
            for code, example in content["examples"].items():
                assert example["value"]["code"] == code
                assert example["value"]["status"] == int(status)


def test_nothing_is_left_of_the_frameworks_own_errors(api: FastAPI) -> None:
    assert "HTTPValidationError" not in str(api.openapi())


def test_every_operation_has_a_summary_a_known_tag_and_an_id_of_its_own(api: FastAPI) -> None:
    known = {tag["name"] for tag in api.openapi()["tags"]}
    ids = [operation["operationId"] for _, _, operation in operations(api)]
    assert len(ids) == len(set(ids))
    for method, path, operation in operations(api):
        assert operation["summary"], (method, path)
        assert set(operation["tags"]) <= known, (method, path)


def test_only_methods_that_a_mini_program_can_send(api: FastAPI) -> None:
    used = {method for item in api.openapi()["paths"].values() for method in item if method != "parameters"}
    assert used <= METHODS


def test_the_document_is_openapi_3_1_and_holds_the_gate(api: FastAPI) -> None:
    document = api.openapi()
    assert document["openapi"].startswith("3.1")
    assert "put" in document["paths"]["/v1/claims/{claim_id}"]
    assert "get" in document["paths"]["/v1/releases/{release_id}/availability"]


def test_every_reference_in_the_document_leads_somewhere(api: FastAPI) -> None:
    document = api.openapi()
    for reference in set(re.findall(r"'\$ref': '#/([^']+)'", str(document))):
        target = document
        for part in reference.split("/"):
            target = target[part]


def test_signed_in_writes_take_an_idempotency_key_and_others_do_not(api: FastAPI) -> None:
    for method, path, operation in operations(api):
        takes_key = any(p.get("name") == "Idempotency-Key" for p in operation.get("parameters", []))
        if path == "/v1/auth/wechat":
            assert not takes_key
        if path == "/v1/me/people" and method == "post":
            assert takes_key
            assert "idempotency_mismatch" in str(operation["responses"]["422"])


def test_problems_of_one_status_share_a_response() -> None:
    declared = problems(NotFound, Conflict, Unavailable)
    assert set(declared) == {404, 409, 503}
    assert set(declared[409]["content"]["application/problem+json"]["examples"]) == {"conflict"}


def test_merging_refuses_to_describe_an_operation_twice() -> None:
    ours: Document = {"paths": {"/a": {"get": {}}}, "components": {"schemas": {"A": {"type": "object"}}}}
    merge_paths(ours, {"paths": {"/a": {"put": {}}}, "components": {"schemas": {"A": {"type": "object"}}}})
    assert set(ours["paths"]["/a"]) == {"get", "put"}
    with pytest.raises(ValueError, match="described twice"):
        merge_paths(ours, {"paths": {"/a": {"get": {}}}})
    with pytest.raises(ValueError, match="in two ways"):
        merge_paths(ours, {"components": {"schemas": {"A": {"type": "string"}}}})


def test_codes_are_stable_words_and_mean_one_thing() -> None:
    kinds = every_problem()
    codes = [kind.code for kind in kinds if kind.__module__.startswith("app.")]
    assert len(codes) == len(set(codes))
    for kind in kinds:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.code)
        assert kind.title_en
        assert kind.title_zh
        assert 400 <= kind.status < 600


def test_the_table_in_the_repository_is_up_to_date() -> None:
    ours = [kind for kind in every_problem() if kind.__module__.startswith("app.")]
    assert ERRORS_FILE.read_text(encoding="utf-8") == markdown_table(ours), "run: python -m app.api"


async def test_the_type_of_a_problem_leads_to_its_row(client: httpx2.AsyncClient) -> None:
    problem = (await client.get("/v1/nothing")).json()
    path, _, fragment = problem["type"].partition("#")
    page = await client.get(path)
    assert page.status_code == 200
    assert f'id="{fragment}"' in page.text


async def test_the_docs_open_without_the_internet(client: httpx2.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    for asset in re.findall(r'(?:href|src)="([^"]+)"', page.text):
        assert (await client.get(asset)).status_code == 200, asset
    assert (await client.get("/openapi.json")).json()["openapi"].startswith("3.1")
