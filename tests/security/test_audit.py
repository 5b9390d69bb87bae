"""The audit of what is locked: a version that was taken back is found, and what could not be asked is no pass."""

import importlib.util
import zipfile
from collections.abc import Generator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
NAME: Final = "clocktower_taken_back"
_METADATA: Final = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n"
_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture(scope="module")
def audit() -> Any:
    """Load the script, which is in no package."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / "deploy" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


def _offer(directory: Path, *, is_yanked: bool) -> str:
    """Make an index of one wheel (PEP 503), which may be taken back (PEP 592); return the line that locks it."""
    wheel = directory / f"{NAME}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {"METADATA": _METADATA, "WHEEL": _WHEEL, "RECORD": ""}.items():
            archive.writestr(f"{NAME}-1.0.dist-info/{name}", text)
    digest = sha256(wheel.read_bytes()).hexdigest()
    page = directory / "simple" / NAME.replace("_", "-")
    page.mkdir(parents=True)
    mark = ' data-yanked="it lost places"' if is_yanked else ""
    (page / "index.html").write_text(f'<a href="/{wheel.name}#sha256={digest}"{mark}>{wheel.name}</a>')
    return f"{NAME.replace('_', '-')}==1.0 --hash=sha256:{digest}\n"


@pytest.fixture
def index(tmp_path: Path) -> Generator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/simple/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("is_yanked", [True, False])
def test_a_version_that_was_taken_back_is_found_with_its_reason(
    audit: Any, index: str, tmp_path: Path, *, is_yanked: bool
) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(_offer(tmp_path, is_yanked=is_yanked))
    found = audit.yanked(lock, "--default-index", index)
    assert len(found) == is_yanked
    assert all("clocktower-taken-back" in sentence and "it lost places" in sentence for sentence in found)


def test_an_index_that_does_not_answer_is_no_pass(audit: Any, tmp_path: Path) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(_offer(tmp_path, is_yanked=False))
    with pytest.raises(audit.NotAskedError, match="taken back"):
        audit.yanked(lock, "--default-index", "http://127.0.0.1:9/simple/")
