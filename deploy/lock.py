"""Locks the versions and hashes of everything that is installed, for all platforms at once.

Without options it locks what pyproject.toml asks for and keeps what is locked already; `--upgrade` takes the newest
versions; `--check` changes nothing and asks no network. The file names no address: where packages come from is the
business of whoever installs.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
RUNTIME_LOCK = ROOT / "deploy" / "runtime.lock"
BUILD_LOCK = ROOT / "deploy" / "build.lock"
AUDIT_LOCK = ROOT / "deploy" / "audit.lock"
COMPILE = (
    *("pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes", "--quiet"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"),
)
# Each file, and what goes into it. The later ones take their versions from the first.
LOCKS = {
    LOCK: ("pyproject.toml", "--group", "dev"),
    RUNTIME_LOCK: ("pyproject.toml", "--constraint", LOCK.name),
    BUILD_LOCK: ("--group", "pyproject.toml:build", "--constraint", LOCK.name),
    # Judges the others from an environment of its own.
    AUDIT_LOCK: ("--group", "pyproject.toml:audit", "--constraint", LOCK.name),
}
PINNED = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+?))?(?: \\)?$", re.MULTILINE)


def asked_for() -> list[Requirement]:
    """Return what pyproject.toml names."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    groups = project["dependency-groups"]
    named = [*project["project"]["dependencies"], *groups["dev"], *groups["build"]]
    return [Requirement(text) for text in named if isinstance(text, str)]


def locked() -> dict[str, Version]:
    """Return what the lock file holds for this platform."""
    return {
        canonicalize_name(pin["name"]): Version(pin["version"])
        for pin in PINNED.finditer(LOCK.read_text("utf-8"))
        if pin["marker"] is None or Marker(pin["marker"]).evaluate()
    }


def required_by(requirement: Requirement) -> Iterator[Requirement]:
    """Give what an installed distribution needs on this platform, with the extras that are asked for."""
    for text in metadata.requires(requirement.name) or ():
        needed = Requirement(text)
        extras = requirement.extras or {""}
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield needed


def complaints() -> Iterator[str]:
    """Say what is missing from the lock file, wrong in it, or not needed."""
    pins = locked()
    to_follow = asked_for()
    followed: set[tuple[str, frozenset[str]]] = set()
    while to_follow:
        requirement = to_follow.pop()
        name = canonicalize_name(requirement.name)
        if name not in pins:
            yield f"{name} is not locked"
            continue
        if not requirement.specifier.contains(pins[name], prereleases=True):
            yield f"{name} is locked at {pins[name]}, and {requirement} is asked for"
        if (name, frozenset(requirement.extras)) not in followed:
            followed.add((name, frozenset(requirement.extras)))
            try:
                to_follow.extend(required_by(requirement))
            except metadata.PackageNotFoundError:
                yield f"{name} is locked and not installed here: run `make env`"
    for name in sorted(pins.keys() - {name for name, _ in followed}):
        yield f"{name} is locked, and nothing needs it"
    everything = set(_pin_lines(LOCK))
    for path in (RUNTIME_LOCK, BUILD_LOCK):
        for line in _pin_lines(path):
            if line not in everything:
                yield f"{path.name} holds {line}, and {LOCK.name} does not"


def _pin_lines(path: Path) -> list[str]:
    return [f"{pin['name']}=={pin['version']}" for pin in PINNED.finditer(path.read_text("utf-8"))]


def main() -> int:
    """Lock, or check the lock; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the file is out of date")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that are allowed")
    arguments = parser.parse_args()
    if arguments.check:
        found = sorted(set(complaints()))
        if found:
            sys.stderr.write(
                "requirements.lock does not fit (`make lock` makes it anew):\n  " + "\n  ".join(found) + "\n"
            )
        return 1 if found else 0
    uv = Path(sys.executable).with_name("uv")
    upgrade = ["--upgrade"] if arguments.upgrade else []
    for path, content in LOCKS.items():
        command = [uv, *COMPILE, *content, "--output-file", path, *upgrade]
        done = subprocess.run(command, cwd=ROOT, check=False)  # noqa: S603 - uv of this environment, arguments made here
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
