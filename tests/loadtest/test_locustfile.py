"""The Locust file against the real server, as loadtest/README.md says to run it."""

import json
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

import httpx2
import pytest

from loadtest.operator import rehearsal_release
from tests.serving.servers import PATIENCE_SECONDS, ROOT, Server, await_true, clean_environment, clocktower

OPERATOR: Final = "demo-operator"
CANNOT_START: Final = 2
USERS: Final = 20


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    running = Server.start(tmp_path_factory.mktemp("rushed") / "data")
    try:
        for command in (("seed",), ("grant", OPERATOR, "operator")):
            assert clocktower(*command, "--data-dir", running.data_dir).returncode == 0
        yield running
    finally:
        running.end()


def locust(server: Server, log_path: Path, **env: str) -> subprocess.Popen[bytes]:
    """Start it headless. The bound is for a test that fails: a good one ends it before."""
    with log_path.open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            [
                *(sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--json"),
                *("-u", str(USERS), "-r", str(USERS), "-t", f"{PATIENCE_SECONDS:.0f}s", "-H", server.address),
            ],
            cwd=ROOT,
            env=clean_environment(env),
            stdout=subprocess.PIPE,
            stderr=log,
        )


def publish_release(client: httpx2.Client) -> str:
    """Publish the rehearsal's release, to open in two seconds."""
    page = client.get("/v1/stations?kind=service_station&limit=100").raise_for_status().json()
    now = datetime.fromisoformat(cast("str", client.get("/v1/time").json()["now"]))
    body = rehearsal_release([item["id"] for item in page["items"]], now + timedelta(seconds=2), "Locust")
    release_id = client.post("/v1/releases", json=body).raise_for_status().json()["id"]
    client.post(f"/v1/releases/{release_id}/publish").raise_for_status()
    return release_id


def test_a_seed_that_is_no_number_ends_locust_with_a_sentence(town: Server, tmp_path: Path) -> None:
    log_path = tmp_path / "locust.log"
    with locust(town, log_path, CROWD_SEED="seven") as run:
        try:
            run.communicate(timeout=PATIENCE_SECONDS)
        finally:
            run.kill()
    assert run.returncode != 0
    said = log_path.read_text()
    assert "CROWD_SEED is 'seven'; give a whole number" in said
    assert "Traceback" not in said


def test_without_its_release_locust_ends_with_a_sentence(town: Server, tmp_path: Path) -> None:
    log_path = tmp_path / "locust.log"
    with locust(town, log_path, CROWD_RELEASE="00000000-0000-7000-8000-000000000000") as run:
        try:
            run.communicate(timeout=PATIENCE_SECONDS)
        finally:
            run.kill()
    assert run.returncode == CANNOT_START
    said = log_path.read_text()
    assert said.count("The release in CROWD_RELEASE cannot be read") == 1
    assert "Traceback" not in said


def test_locusts_parents_rush_an_opening_of_the_real_server_without_an_answer_that_should_not_occur(
    town: Server, tmp_path: Path
) -> None:
    bearer = {"Authorization": f"Bearer {town.sign_in(OPERATOR)['access_token']}"}
    with httpx2.Client(base_url=town.address, headers=bearer, timeout=PATIENCE_SECONDS) as client:
        release_id = publish_release(client)

        def audit() -> Mapping[str, Any]:
            return client.get(f"/v1/releases/{release_id}/audit").raise_for_status().json()

        with locust(town, tmp_path / "locust.log") as rush:
            try:
                await_true(lambda: audit()["held"] >= USERS)
                rush.send_signal(signal.SIGTERM)
                statistics, _ = rush.communicate(timeout=PATIENCE_SECONDS)
            finally:
                rush.kill()
        # What a user was cut off from is confirmed a moment later.
        await_true(lambda: audit()["consistent"])
        at_rest = audit()
    assert rush.returncode == 0, (tmp_path / "locust.log").read_text()
    assert (at_rest["over_capacity"], at_rest["double_held"]) == (0, 0)
    claims = [line for line in json.loads(statistics) if line["name"] == "/v1/claims/{id}" and line["method"] == "PUT"]
    assert sum(line["num_requests"] for line in claims) >= USERS
    assert sum(line["num_failures"] for line in json.loads(statistics)) == 0
