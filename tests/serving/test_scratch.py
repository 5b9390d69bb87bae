"""Directories that are there for a moment."""

import threading
import time
from pathlib import Path

from app.cli.scratch import remove_tree


def test_a_directory_goes_although_somebody_still_writes_in_it(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    until = time.monotonic() + 0.5

    def write() -> None:
        number = 0
        while time.monotonic() < until:
            number += 1
            (directory / f"file-{number}").touch()

    def go_on_writing() -> None:
        try:
            write()
        except FileNotFoundError:
            # Removed between two of its files, which is as good.
            return

    writing = threading.Thread(target=go_on_writing)
    writing.start()
    remove_tree(directory)
    writing.join()
    assert not directory.exists()
