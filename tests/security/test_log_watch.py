"""The watch over the logs of a run finds what must not be there, and nothing else."""

import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from app.accounts.family import service as family
from app.booking.gate.passes import Pass, PassPerson, PassSigner, mask_of
from app.core.auth import sign_access_token
from app.core.ids import new_id
from tests.log_watch import secrets_in

ROOT: Final = Path(__file__).parents[2]
KEY: Final = "a key that is only of this test, and long"


def _pass() -> str:
    people = (PassPerson(new_id().bytes, mask_of({0}), 0),)
    return PassSigner(KEY).sign(Pass.of(new_id(), new_id(), 4_102_444_800_000, people))


def _random(size_bytes: int) -> str:
    """Return a token that is as most are; one in a hundred has no digit, say, and is missed."""
    return next(
        token
        for token in iter(lambda: secrets.token_urlsafe(size_bytes), "")
        if any(c.isdigit() for c in token) and any(c.isupper() for c in token) and any(c.islower() for c in token)
    )


FORMS: Final[Mapping[str, str]] = {
    "access_token": sign_access_token(new_id(), key=KEY.encode(), now_ms=1_900_000_000_000, lifetime_seconds=60),
    "pass": _pass(),
    "key": "token-key-of-the-tests-0123456789abcdef",
    "wechat_token": f"fake_{secrets.token_urlsafe(96)}",
    "password": "postgresql://clocktower:sesame@127.0.0.1:5432/clocktower",
    "random_token": _random(family._INVITATION_TOKEN_BYTES),
    "nickname": "小满乙",
    "birth_month": "2016-05",
    "open_id": "demo-parent1",
}


@pytest.mark.parametrize("kind", FORMS)
def test_each_kind_is_found_in_whatever_it_stands(kind: str) -> None:
    found = FORMS[kind]
    for text in (found, f"event='x' token={found!r}", f'{{"a":"{found}","b":1}}', f"a {found}, b"):
        assert kind in set(secrets_in(text)), text
    assert kind in set(secrets_in(found.encode("unicode_escape").decode()))


def test_a_refresh_token_is_found_by_its_length() -> None:
    assert list(secrets_in(f"token={_random(32)}")) == ["random_token"]


@pytest.mark.parametrize(
    "text",
    [
        '{"timestamp":"2026-07-01T09:00:00.042Z","request_id":"6f1c0e9a4b7d2f3851c0a7de","route":"/v1/me/people"}',
        "release=0197a3c0-1c00-7000-8000-0000000000f1 rules_version='r-0123456789abcdef' by=None",
        "/srv/clocktower/.venv/lib/python3.11/site-packages/Starlette_2024_Middleware/Errors.py:63 __call__",
        "2026-07-01 09:00:00.042 UTC [4242] LOG:  database system is ready to accept connections",
        "redis://127.0.0.1:6379/0 postgresql://clocktower@/clocktower?host=/tmp/x&port=5432",
        "Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)",
        "1970-01-01T00:00:00Z 2016-05-01",
    ],
)
def test_what_a_log_is_made_of_is_no_find(text: str) -> None:
    assert list(secrets_in(text)) == []


LEAKS: Final[Mapping[str, str]] = {
    "record": "import logging; logging.getLogger('app.leaky').info('claim_refused person=%s', '小满乙')",
    "event": "import structlog; structlog.stdlib.get_logger('app.leaky').info('x', who='小满乙')",
    "process": "import subprocess; subprocess.run(['sh', '-c', 'echo 小满乙 >&2'], check=True)",
    "file": "(tmp_path / 'serve.log').write_text('小满乙')",
    "record_past_all_handlers": "import logging; logging.getLogger().handlers = []; "
    "logging.getLogger('app.leaky').info('小满乙')",
}


def _run(tests: Mapping[str, str], directory: Path, *, processes: int = 0) -> tuple[int, list[str]]:
    """Run these tests, watched, in this many processes beside pytest's own; return the exit status and what it said."""
    inner = directory / "test_inner.py"
    # The last is for what the processes of the one before it wrote.
    written = [f"def test_{name}(tmp_path):\n    {body}\n" for name, body in {**tests, "behind_them": "pass"}.items()]
    inner.write_text("\n\n".join(written), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", f"--rootdir={directory}"]
    command += ["-n", str(processes), "--dist", "loadfile"]
    command += [f"--basetemp={directory / 'inner'}", "-c", str(ROOT / "pyproject.toml"), str(inner)]
    done = subprocess.run(  # noqa: S603 - our own interpreter, arguments made here
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    # What leaked on purpose is not for the watch over this run.
    shutil.rmtree(directory)
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith("E") and " in " in line]


# Two as `make test` has them.
@pytest.mark.parametrize("processes", [0, 2])
def test_a_leak_anywhere_fails_the_run_and_the_test_is_named(processes: int, tmp_path: Path) -> None:
    status, told = _run(LEAKS, tmp_path, processes=processes)
    assert status == 1
    assert len(told) == len(LEAKS), told
    for name in LEAKS:
        assert any("nickname in" in line and f"test_{name}" in line for line in told), (name, told)
    assert "小满" not in "".join(told)


def test_a_run_without_a_leak_passes(tmp_path: Path) -> None:
    assert _run({"clean": "import logging; logging.getLogger('app.tidy').info('claim_refused')"}, tmp_path) == (0, [])
