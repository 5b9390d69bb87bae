"""Where reports go: files are replaced whole, and nothing else is replaced."""

import os
import stat
import threading
from pathlib import Path

import pytest

from loadtest.report import write_atomically


def test_a_report_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    report = tmp_path / "build" / "report.json"
    for text in ("first", "second"):
        write_atomically(report, text)
        assert report.read_text("utf-8") == text
    assert [path.name for path in report.parent.iterdir()] == ["report.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in its file system")
def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard: list[str] = []
    # Open for writing too, so that nobody waits for the other.
    with os.fdopen(os.open(pipe, os.O_RDWR), "rb", buffering=0) as end:
        reader = threading.Thread(target=lambda: heard.append(os.read(end.fileno(), 100).decode()), daemon=True)
        reader.start()
        write_atomically(pipe, "report")
        reader.join(10)
    assert heard == ["report"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
