"""The guide for front-end developers: every line of it works when pasted, in its order."""

import asyncio
import re
import subprocess
from pathlib import Path

import asyncpg

from tests.booking.gate.builders import make_release

GUIDE = Path(__file__).parent.parent.parent / "docs" / "api-guide.md"
DEMO_ADDRESS = "http://127.0.0.1:8000"


def lines_to_paste() -> str:
    """Return the shell blocks of the guide, less the one that starts the demo."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return "\n".join(block for block in blocks if block != "make demo\n")


async def open_release(database_url: str) -> None:
    db = await asyncpg.connect(database_url)
    try:
        await make_release(db, capacities=(5, 5))
    finally:
        await db.close()


def test_every_line_of_the_guide_works_when_pasted(base_url: str, database_url: str) -> None:
    asyncio.run(open_release(database_url))
    script = lines_to_paste()
    assert DEMO_ADDRESS in script

    done = subprocess.run(  # noqa: S603 - our own document
        ["/bin/bash", "-euo", "pipefail", "-c", script.replace(DEMO_ADDRESS, base_url)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    # The grab, the same again, and what became of both.
    assert re.search(r'"state":"confirmed".*\n201\n', done.stdout), done.stdout
    assert re.search(r'"state":"confirmed".*\n200\n', done.stdout), done.stdout
    assert re.search(r"^.*\}304$", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.rstrip().endswith("}")
    assert '"state":"cancelled"' in done.stdout.splitlines()[-1]
    assert '"code"' not in done.stdout
