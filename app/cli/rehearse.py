"""`clocktower rehearse`: a crowd of parents against any address, or against engines of its own."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from app.cli import surroundings
from app.cli.own_server import OwnServer
from app.cli.refusal import EXIT_WRONG, Refusal, out, say
from app.cli.town import make_town
from loadtest.display import Display
from loadtest.prepare import CannotRunError
from loadtest.rehearsal import RehearsalOptions, rehearse
from loadtest.report import print_verdict, write_html, write_json
from loadtest.verdict import Verdict

# With the fake WeChat this code signs in the open id of the same name; it is granted the role of an operator.
OPERATOR_CODE: Final = "demo-operator"


@dataclass(frozen=True, slots=True)
class Reports:
    """Where the verdict goes besides the terminal."""

    json: Path | None = None
    html: Path | None = None

    def require_writable(self) -> None:
        """Raise `Refusal` where a report could not be written: before the rehearsal, not after it.

        Nothing is left behind: no directory is made, and no empty file where none was.
        """
        for path in (self.json, self.html):
            if path is not None:
                try:
                    if path.exists():
                        path.open("a").close()
                    else:
                        path.open("x").close()
                        path.unlink()
                except OSError as problem:
                    raise Refusal(f"{path} cannot be written ({problem.strerror}).") from problem

    def write(self, verdict: Verdict) -> None:
        """Write what was asked for."""
        if self.json is not None:
            write_json(verdict, self.json)
        if self.html is not None:
            write_html(verdict, self.html)


def rehearse_once(options: RehearsalOptions, reports: Reports) -> Verdict:
    """Rehearse with a live display, print and write the verdict. Raises `Refusal` when it could not take place."""
    say(f"{options.parents} parents, drawn from seed {options.seed}; --seed {options.seed} draws the same crowd again.")
    try:
        with Display(out) as display:
            verdict = uvloop.run(rehearse(options, progress=display))
    except CannotRunError as error:
        raise Refusal(f"The rehearsal could not take place: {error}") from error
    reports.write(verdict)
    print_verdict(verdict, out)
    return verdict


def rehearse_at(options: RehearsalOptions, reports: Reports) -> int:
    """Rehearse against a server that runs somewhere. Returns the exit status."""
    return 0 if rehearse_once(options, reports).holds else EXIT_WRONG


def rehearse_embedded(options: RehearsalOptions, reports: Reports, *, workers: int) -> int:
    """Rehearse against a server of one's own, which leaves nothing behind but its log, and that on failure only.

    `options` gives all but the address and the operator. Returns the exit status.
    """
    descriptor, log_name = tempfile.mkstemp(prefix="clocktower-rehearsal-", suffix=".log")
    os.close(descriptor)
    log_path = Path(log_name)
    data_dir = Path(tempfile.mkdtemp(prefix="clocktower-rehearsal-"))
    status = EXIT_WRONG
    try:
        say("Starting a server for the rehearsal")
        with OwnServer.start(data_dir, port=0, workers=workers, log_path=log_path) as server:
            make_town(server.data_dir, operator_openid=OPERATOR_CODE)
            status = rehearse_at(
                RehearsalOptions(
                    base_url=server.address,
                    parents=options.parents,
                    seed=options.seed,
                    seconds_before=options.seconds_before,
                    operator_code=OPERATOR_CODE,
                    workers=workers,
                ),
                reports,
            )
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
        if status == 0:
            log_path.unlink(missing_ok=True)
        else:
            say(f"The server's log is {log_path}.")
    return status


def operator_of_running(data_dir: Path) -> tuple[str, str]:
    """Return the address of the server on a data directory and the code of an operator, who is granted the role."""
    server = surroundings.running_server(data_dir)
    make_town(data_dir, operator_openid=OPERATOR_CODE)
    return server.address, OPERATOR_CODE
