"""Where a command finds its servers: given in the environment, or run by `clocktower serve` under a data directory.

The embedded mode makes its secrets once and keeps them in `<data_dir>/secrets.json`. While it serves, its environment
stands in `<data_dir>/serve.json`, so that `clocktower grant … --data-dir DIR` reaches the same engines. Both files
are readable by their owner only.
"""

import json
import os
import secrets
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import psutil

from app.cli.refusal import Refusal
from app.core.embedded import DataDirectoryUnusable
from app.core.logs import configure_logs
from app.core.settings import ENVIRONMENT_PREFIX, Settings, SettingsError, load_settings

DATABASE_URL: Final = ENVIRONMENT_PREFIX + "DATABASE_URL"
REDIS_URL: Final = ENVIRONMENT_PREFIX + "REDIS_URL"
SECRETS: Final = tuple(ENVIRONMENT_PREFIX + name for name in ("TOKEN_KEY", "PASS_KEY", "SEALING_KEY"))
WECHAT: Final = tuple(ENVIRONMENT_PREFIX + name for name in ("WECHAT_BASE_URL", "WECHAT_APP_ID", "WECHAT_APP_SECRET"))

DEFAULT_DATA_DIR: Final = Path("data")
_SECRET_BYTES: Final = 32
# psutil tells a process's start to some 10 ms; two processes of one number start further apart.
_SAME_START_SECONDS: Final = 1.0


def is_embedded() -> bool:
    """Tell whether the engines are to be our own: neither address is given. Raises `Refusal` when only one is."""
    given = [name for name in (DATABASE_URL, REDIS_URL) if os.environ.get(name)]
    if len(given) == 1:
        (missing,) = {DATABASE_URL, REDIS_URL} - set(given)
        raise Refusal(
            f"{given[0]} is set and {missing} is not: set both to use servers of your own, "
            "or neither to run the embedded ones."
        )
    return not given


def again(command: str, data_dir: Path) -> str:
    """Return a command to be pasted, for the same servers as this one."""
    there = f" --data-dir {shlex.quote(str(data_dir))}" if data_dir != DEFAULT_DATA_DIR else ""
    return f"clocktower {command}{there}"


def checked_settings() -> Settings:
    """Read the environment. Raises `Refusal` with one sentence for each variable that is missing or wrong."""
    try:
        return load_settings()
    except SettingsError as error:
        raise Refusal(f"{error}\n`clocktower settings` lists every variable and what is allowed.") from None


def environment_now() -> dict[str, str]:
    """Return this process's variables of the service."""
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}


def keep_secrets(data_dir: Path) -> dict[str, str]:
    """Return the data directory's secrets by variable, making them at the first start.

    Raises `Refusal` when the file is missing beside a database that was sealed with it, or is not what was written.
    """
    path = data_dir / "secrets.json"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            if (data_dir / "postgres").exists():
                raise Refusal(
                    f"{path} is missing, and without it the nicknames in {data_dir / 'postgres'} cannot be read; "
                    "put it back, or move the data directory away to begin anew."
                )
            made = {name: secrets.token_urlsafe(_SECRET_BYTES) for name in SECRETS}
            _write_once(path, json.dumps(made, indent=2) + "\n")
        kept = _read_strings(path)
    except OSError as problem:
        raise DataDirectoryUnusable(data_dir, problem) from problem
    if set(kept) != set(SECRETS):
        raise Refusal(f"{path} does not hold {', '.join(SECRETS)}; put back the file that was made with the data.")
    return kept


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A `clocktower serve` that runs on a data directory now."""

    pid: int
    address: str
    environment: Mapping[str, str]


def announce(data_dir: Path, address: str) -> None:
    """Write down that this process serves the data directory, and with which environment."""
    card = {
        "pid": str(os.getpid()),
        "started_at_s": str(psutil.Process().create_time()),
        "address": address,
        **environment_now(),
    }
    _write_anew(data_dir / "serve.json", json.dumps(card, indent=2) + "\n")


def withdraw(data_dir: Path) -> None:
    """Take back what `announce` wrote."""
    (data_dir / "serve.json").unlink(missing_ok=True)


def running_server(data_dir: Path) -> RunningServer:
    """Return the server that runs on a data directory. Raises `Refusal` when none does."""
    none = Refusal(
        f"No server runs on {data_dir}: start `clocktower serve --data-dir {data_dir}` first, or set {DATABASE_URL} "
        f"and {REDIS_URL}."
    )
    try:
        card = _read_strings(data_dir / "serve.json")
        pid, started_at_s = int(card.pop("pid")), float(card.pop("started_at_s"))
        address = card.pop("address")
    except (OSError, KeyError, ValueError):
        raise none from None
    try:
        # The number alone proves nothing: after a kill it may belong to somebody else.
        if abs(psutil.Process(pid).create_time() - started_at_s) > _SAME_START_SECONDS:
            raise none
    except psutil.Error:
        raise none from None
    return RunningServer(pid, address, card)


def enter(data_dir: Path) -> Settings:
    """Take on the settings of the servers that a command is to work with.

    Those of the environment when it names servers, else those of the server that runs on `data_dir`. Raises `Refusal`.
    """
    if is_embedded():
        os.environ.update(running_server(data_dir).environment)
    settings = checked_settings()
    # A command says in sentences what it does; of the service's own events only troubles are shown beside them.
    configure_logs(settings.model_copy(update={"log_level": "warning", "log_format": "console"}))
    return settings


def _read_strings(path: Path) -> dict[str, str]:
    """Read a JSON object of strings. Raises `OSError`; what is no such object reads as an empty one."""
    try:
        document: object = json.loads(path.read_text("utf-8"))
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    fields = cast("dict[str, object]", document)
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def _write_beside(path: Path, text: str) -> Path:
    """Write a file of its own (mode 0600) beside `path`, flushed to the disk."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _write_once(path: Path, text: str) -> None:
    """Write a file that nobody has written yet; when somebody is quicker, theirs stands."""
    written = _write_beside(path, text)
    try:
        path.hardlink_to(written)
    except FileExistsError:
        pass
    finally:
        written.unlink()


def _write_anew(path: Path, text: str) -> None:
    _write_beside(path, text).replace(path)
