"""Asks what the world knows by now against the versions that are locked: advisories, and versions taken back.

pip-audit asks the advisories of the package index (or, with `--service osv`, of OSV), uv says which versions were
yanked (PEP 592). Both need the network. What could not be asked is said, and is no pass: the exit status is 0 when
everything was asked and nothing found, 1 when something was found, and 2 when something could not be asked.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
LOCK: Final = ROOT / "requirements.lock"
TOOL_LOCK: Final = ROOT / "deploy" / "audit.lock"
TOOLS: Final = ROOT / ".cache" / "audit"
YANKED: Final = re.compile(r"^warning: (?P<what>.*\byanked\b.*)$", re.MULTILINE)


class NotAskedError(Exception):
    """Something could not be asked; `str()` says what, and the last word of whoever tried."""


def _run(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - tools of our own environments, arguments made here
        command,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def yanked(lock: Path, *arguments: str) -> list[str]:
    """Return what the index says of the versions that were taken back, one sentence each.

    Everything is resolved anew and nothing is installed; `arguments` go to uv. Raises `NotAskedError`.
    """
    uv = Path(sys.executable).with_name("uv")
    asked = _run(
        [
            *(uv, "pip", "install", "--dry-run", "--reinstall", "--no-deps", "--require-hashes", "--refresh"),
            *("--python", sys.executable, *arguments, "--requirement", lock),
        ]
    )
    if asked.returncode:
        raise NotAskedError(f"Which versions were taken back: {_last_line(asked.stderr)}")
    return [found["what"] for found in YANKED.finditer(asked.stderr)]


def advisories(lock: Path, *arguments: str) -> list[str]:
    """Return each known vulnerability of a locked version; `arguments` go to pip-audit. Raises `NotAskedError`."""
    asked = _run(
        [
            *(_pip_audit(), "--requirement", lock, "--require-hashes", "--disable-pip", "--strict"),
            *("--format", "json", "--progress-spinner", "off", *arguments),
        ]
    )
    try:
        told: dict[str, Any] = json.loads(asked.stdout)
    except json.JSONDecodeError:
        raise NotAskedError(f"Which versions are vulnerable: {_last_line(asked.stderr)}") from None
    return [
        f"{package['name']} {package['version']}: {known['id']}"
        + (f", mended in {', '.join(known['fix_versions'])}" if known["fix_versions"] else ", not mended yet")
        for package in told["dependencies"]
        for known in package.get("vulns", ())
    ]


def _pip_audit() -> Path:
    """Return pip-audit, installed by its own lock file, apart from what it judges."""
    tool = TOOLS / "bin" / "pip-audit"
    uv = Path(sys.executable).with_name("uv")
    made = TOOLS / ".made"
    if made.exists() and made.stat().st_mtime >= TOOL_LOCK.stat().st_mtime:
        return tool
    for command in (
        [uv, "venv", "--quiet", "--no-project", "--clear", "--python", sys.executable, TOOLS],
        [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", TOOLS / "bin" / "python", TOOL_LOCK],
    ):
        done = _run(command)
        if done.returncode:
            raise NotAskedError(f"pip-audit could not be installed: {_last_line(done.stderr)}")
    made.touch()
    return tool


def main() -> int:
    """Ask, say what was found, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="whose advisories are asked")
    service: str = parser.parse_args().service
    found: list[str] = []
    not_asked: list[str] = []
    for ask in (lambda: yanked(LOCK), lambda: advisories(LOCK, "--vulnerability-service", service)):
        try:
            found += ask()
        except NotAskedError as missing:
            not_asked.append(str(missing))
    for sentence in found:
        sys.stdout.write(f"found: {sentence}\n")
    for sentence in not_asked:
        sys.stdout.write(f"not asked: {sentence}\n")
    if not (found or not_asked):
        sys.stdout.write("Nothing is known against what is locked.\n")
    return 1 if found else 2 if not_asked else 0


if __name__ == "__main__":
    sys.exit(main())
