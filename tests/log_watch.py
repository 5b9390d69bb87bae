"""Reads everything that a run of the tests logs, and remembers where a secret or a personal fact stood in it.

What is looked for is told by its form, so that it is found whatever test made it: tokens, passes, keys, passwords in
addresses; nicknames, months of birth and open ids, which the tests write in a way that nothing else is written in.
Only the kind of what was found is remembered, and never the find itself.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from app.wechat.fake.demo import DEMO_APP_SECRET

# How nicknames begin, whoever makes them up: 小满甲, 绝密000017, 儿童丙0021.
NICKNAMES: Final = ("小满", "绝密", "儿童丙", "居民甲")
_LOG_BYTES_MAX: Final = 64 * 1024 * 1024


def _in_any_notation(*texts: str) -> str:
    """Return a pattern for texts as they are, or escaped as JSON and Python do it."""
    escaped = [text.encode("unicode_escape").decode() for text in texts if not text.isascii()]
    return "|".join(re.escape(text) for text in (*texts, *escaped))


_FORMS: Final = {
    "access_token": r"eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}",
    # A list of five, the first of them 1, the second of sixteen bytes: how the contents of every pass begin.
    "pass": r"lQHEE[A-P][\w-]{40,}",
    "key": r"(?:token|pass|sealing)-key-of-the-tests|" + re.escape(DEMO_APP_SECRET),
    "wechat_token": r"fake_[\w-]{100,}",
    "password": r"[a-z][a-z+]*://[^\s:/@]*:[^\s:/@]+@",
    # 24 or 32 random bytes in base64: refresh tokens, invitations, keys of the embedded mode; digits, capitals and
    # small letters, which no name of ours has all of at this length.
    "random_token": r"(?<![\w./-])(?=[\w-]*[0-9])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])(?:[\w-]{43}|[\w-]{32})(?![\w./-])",
    "nickname": _in_any_notation(*NICKNAMES),
    # A month without a day, of years in which children and their parents were born.
    "birth_month": r"(?<![\d-])(?:19[0-9]{2}|20[01][0-9]|202[0-5])-(?:0[1-9]|1[0-2])(?![\d-])",
    "open_id": r"\b(?:demo|once)-[\w.-]*\w",
}
_LOOKED_FOR: Final = re.compile("|".join(f"(?P<{kind}>{form})" for kind, form in _FORMS.items()), re.ASCII)


def secrets_in(text: str) -> Iterator[str]:
    """Yield the kind of every secret and personal fact in a text."""
    for found in _LOOKED_FOR.finditer(text):
        yield str(found.lastgroup)


class Find(NamedTuple):
    """What was found, and what said it: a test with its logger, or a file."""

    kind: str
    where: str


class LogWatch:
    """Watches one run. `finds` holds each kind once for each place."""

    def __init__(self) -> None:
        self.finds: set[Find] = set()
        self._make_record = logging.getLogRecordFactory()

    def begin(self) -> None:
        """Watch every record of this process from now on, whatever handlers there are: tests replace them."""
        logging.setLogRecordFactory(self._watched)
        # Pytest lets warnings through; what the service says in passing has to be read, too.
        for name in ("app", "uvicorn.error"):
            logging.getLogger(name).setLevel(logging.DEBUG)

    def end(self) -> None:
        """Leave logging as it was."""
        logging.setLogRecordFactory(self._make_record)
        for name in ("app", "uvicorn.error"):
            logging.getLogger(name).setLevel(logging.NOTSET)

    def _watched(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = self._make_record(*arguments, **named)
        # An exception that comes along is not looked at: the service writes none of its text (`app.core.logs`).
        self.read(record.getMessage(), f"{_this_test()}: {record.name}")
        return record

    def read(self, text: str, where: str) -> None:
        """Look through what was written by somebody."""
        for kind in secrets_in(text):
            self.finds.add(Find(kind, where))

    def read_files(self, directory: Path) -> None:
        """Look through every log below a directory: what processes of the tests have written."""
        for path in sorted(directory.rglob("*.log")):
            with path.open("rb") as log:
                text = log.read(_LOG_BYTES_MAX).decode("utf-8", errors="replace")
            self.read(text, str(path.relative_to(directory)))

    def told(self) -> str:
        """Return one line for each find."""
        return "\n".join(f"  {find.kind} in {find.where}" for find in sorted(self.finds))


def _this_test() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "before the tests").partition(" (")[0]


LOG_WATCH: Final = LogWatch()
