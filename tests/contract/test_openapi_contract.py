"""Sends what the OpenAPI document allows, and what it does not, to every operation; no answer may surprise."""

# schemathesis leaves the parameters of its generic classes to inference, which finds none.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Final, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.checks import CheckContext
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.accounts import service as accounts
from app.accounts.policy import Role
from app.core.clock import Clock
from app.core.db import sqlalchemy_url, transaction
from app.core.embedded import Engines
from app.core.settings import Settings
from app.main import create_api, create_app
from tests.conftest import make_settings, serving

Case = schemathesis.Case[Any]
Operation = schemathesis.APIOperation[Any, Any, Any, Any]
Check = Callable[[CheckContext, schemathesis.Response, Case], bool | None]

EXAMPLES_MAX: Final = 20
# Requests go over a real socket to a real server.
SLOW_IS_FINE: Final = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


@pytest.fixture(scope="module")
def contract_settings(database_url: str, engines: Engines, fake_wechat_url: str) -> Settings:
    return make_settings(database_url, engines.redis_url, fake_wechat_url).model_copy(
        # The limits have tests of their own; here every request must get through.
        update={"rate_limit_per_minute": 1_000_000, "sign_in_limit_per_minute": 1_000_000}
    )


@pytest.fixture(scope="module")
def address(contract_settings: Settings) -> Generator[str]:
    with serving(lambda: create_app(contract_settings)) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def operator(contract_settings: Settings) -> dict[str, str]:
    """Sign in somebody who may do everything, so that requests get past the door."""

    async def sign_in() -> str:
        engine = create_async_engine(
            sqlalchemy_url(contract_settings.database_url.get_secret_value()), poolclass=NullPool
        )
        now = Clock().now()
        try:
            async with transaction(engine) as db:
                tokens = await accounts.sign_in(
                    db, openid="demo-operator", unionid=None, now=now, settings=contract_settings
                )
                for role in (Role.OPERATOR, Role.STAFF):
                    await accounts.grant_role(
                        db,
                        account_id=tokens.account_id,
                        role=role,
                        scope_kind=None,
                        scope_id=None,
                        granted_by=None,
                        now=now,
                    )
        finally:
            await engine.dispose()
        return tokens.access_token

    return {"Authorization": f"Bearer {asyncio.run(sign_in())}"}


def no_defect(_context: CheckContext, response: schemathesis.Response, _case: Case) -> None:
    """Refuse a 500, which nobody may cause from outside; that others are declared is checked apart."""
    assert response.status_code != 500, response.text


def problems_are_documents(_context: CheckContext, response: schemathesis.Response, _case: Case) -> None:
    """Every refusal tells its code, and its request's id in body and header."""
    if response.status_code < 400:
        return
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["code"]
    assert problem["request_id"] == response.headers["x-request-id"][0]


CHECKS: Final[list[Check]] = [
    no_defect,
    problems_are_documents,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
# Made without engines: the document is the same for all settings, and its operations are known before any test runs.
SCHEMA: Final = schemathesis.openapi.from_dict(
    create_api(make_settings("postgresql:///nothing", "redis://127.0.0.1:1", "http://127.0.0.1:1")).openapi()
)
OPERATIONS: Final[dict[str, Operation]] = {
    operation.label: operation
    for operation in (cast("Ok[Operation]", result).ok() for result in SCHEMA.get_all_operations())
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_operation_answers_as_it_declares(label: str, address: str, operator: dict[str, str]) -> None:
    operation = OPERATIONS[label]
    # A claim wants a pass; a bearer token there is one more thing to refuse.
    headers = {} if label.startswith("PUT /v1/claims/") else operator

    @hypothesis_settings(max_examples=EXAMPLES_MAX, deadline=None, database=None, suppress_health_check=SLOW_IS_FINE)
    @given(
        case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    )
    def answers(case: Case) -> None:
        response = case.call(base_url=address, headers=headers)
        case.validate_response(response, checks=CHECKS)

    answers()
