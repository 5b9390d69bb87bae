"""The files that a deployment is made of say the same as the code."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final, cast

import pytest
import yaml
from starlette.types import ASGIApp, Receive, Scope, Send

from app.cli.web import web_config
from app.core.settings import ENVIRONMENT_PREFIX, Settings
from app.core.web.callers import address_of
from tests.conftest import make_settings

ROOT: Final = Path(__file__).parent.parent
COMPOSE: Final = cast("dict[str, Any]", yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8")))
SERVICES: Final = cast("dict[str, dict[str, Any]]", COMPOSE["services"])
KNOWN: Final = {ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields}
REQUIRED: Final = {
    ENVIRONMENT_PREFIX + name.upper() for name, field in Settings.model_fields.items() if field.is_required()
}
EXAMPLE: Final = (ROOT / "deploy" / "example.env").read_text("utf-8")


def variables_of(service: str) -> set[str]:
    return set(cast("dict[str, str]", SERVICES[service].get("environment", {})))


def test_every_variable_of_the_deployment_is_a_setting() -> None:
    texts = [EXAMPLE, *((ROOT / name).read_text("utf-8") for name in ("docker-compose.yml", "Dockerfile", "README.md"))]
    named = {name for text in texts for name in re.findall(rf"\b{ENVIRONMENT_PREFIX}[A-Z_]+[A-Z]\b", text)}
    assert named - KNOWN == set()


def test_the_example_environment_and_compose_name_every_setting_without_a_default() -> None:
    given = set(re.findall(r"^(\w+)=", EXAMPLE, re.MULTILINE)) | variables_of("app")
    assert REQUIRED - given == set()


def test_app_and_worker_start_once_the_database_is_migrated_and_both_engines_are_healthy() -> None:
    for service in ("app", "worker"):
        assert SERVICES[service]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "postgres": {"condition": "service_healthy"},
            "valkey": {"condition": "service_healthy"},
        }
    for service in ("postgres", "valkey"):
        assert SERVICES[service]["healthcheck"]["test"]
        assert SERVICES[service]["volumes"]


def test_the_app_gets_longer_to_stop_than_its_requests_do() -> None:
    grace = re.search(r"^CLOCKTOWER_SHUTDOWN_GRACE_SECONDS=(\d+)$", EXAMPLE, re.MULTILINE)
    assert grace is not None
    stop_seconds = int(str(SERVICES["app"]["stop_grace_period"]).removesuffix("s"))
    assert stop_seconds > 2 * int(grace[1]) + 5


def addresses_seen(callers: Sequence[str], *, forwarded_for: str) -> list[str]:
    """Return by which address the app counts requests that these callers hand on for somebody."""
    seen: list[str] = []

    async def application(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(address_of(scope))

    async def call() -> None:
        config = web_config(make_settings("postgresql://nowhere/none", "redis://nowhere", "http://nowhere"))
        # Nothing but the application is another one.
        config.app, config.factory = application, False
        config.load()
        loaded = cast("ASGIApp", config.loaded_app)  # pyright: ignore[reportUnknownMemberType] - uvicorn leaves it untyped
        headers = [(b"x-forwarded-for", forwarded_for.encode())]
        for caller in callers:
            scope: Scope = {"type": "http", "headers": headers, "client": (caller, 50_000)}
            await loaded(scope, cast("Receive", None), cast("Send", None))

    asyncio.run(call())
    return seen


def test_the_proxy_on_the_host_is_believed_and_nobody_else_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    (trusted,) = re.findall(r"^FORWARDED_ALLOW_IPS=(.*)$", EXAMPLE, re.MULTILINE)
    (network,) = cast("list[dict[str, str]]", COMPOSE["networks"]["default"]["ipam"]["config"])
    gateway, subnet = IPv4Address(network["gateway"]), IPv4Network(network["subnet"])
    assert gateway in subnet
    others = [str(host) for host in subnet.hosts() if host != gateway]
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    assert addresses_seen([str(gateway)], forwarded_for="203.0.113.9") == ["203.0.113.9"]
    assert addresses_seen(others, forwarded_for="203.0.113.9") == others


def test_every_service_is_on_the_network_whose_gateway_is_known_and_published_on_this_host_only() -> None:
    for service in SERVICES.values():
        assert not {"networks", "network_mode"} & set(service)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_every_command_of_the_deployment_is_one_of_clocktower() -> None:
    for service in ("migrate", "app", "worker"):
        subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "app.cli", *cast("list[str]", SERVICES[service]["command"]), "--help"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )


@pytest.mark.parametrize("name", ["requirements.lock", "deploy/build.lock", "deploy/runtime.lock", "deploy/audit.lock"])
def test_a_lock_file_holds_versions_and_hashes_and_no_address(name: str) -> None:
    locked = (ROOT / name).read_text(encoding="utf-8")
    assert "--hash=sha256:" in locked
    assert "://" not in locked
    assert "index-url" not in locked


def test_the_locks_hold_hashes_for_everything_and_agree() -> None:
    checked = subprocess.run(
        [sys.executable, "deploy/lock.py", "--check"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    for lock in (ROOT / "requirements.lock", ROOT / "deploy" / "runtime.lock", ROOT / "deploy" / "build.lock"):
        text = lock.read_text("utf-8")
        assert text.count("==") <= text.count("--hash=sha256:")
        assert "://" not in text
