"""The commands and their options; what they do stands in the modules beside this one."""

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

import typer
import uvloop
from rich.console import Console

from app.cli import surroundings
from app.cli.refusal import EXIT_COULD_NOT_START, EXIT_STOPPED, Refusal, err, out, say
from app.core.embedded import EngineFault

app = typer.Typer(
    name="clocktower",
    help="A booking backend for scarce, free, public places.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_WORKERS_MAX: Final = 64
_PARENTS_MAX: Final = 50_000
_SEEDS: Final = 1_000_000
# A table of settings is for reading and for copying from: it must not be cut where there is no terminal.
_TABLE_COLUMNS: Final = 160

DataDir = Annotated[
    Path, typer.Option(help="Where the embedded engines keep their data.", file_okay=False, dir_okay=True)
]
Workers = Annotated[int, typer.Option(min=1, max=_WORKERS_MAX, help="Web worker processes.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")]
Parents = Annotated[int, typer.Option(min=1, max=_PARENTS_MAX, help="Parents in the crowd.")]
SecondsBefore = Annotated[
    float, typer.Option(min=0, max=3_600, help="Seconds from the last sign-in to the opening, at least.")
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The crowd's seed: the same crowd again. Without it, another each time.")
]
AnnounceFd = Annotated[int | None, typer.Option(hidden=True)]
BeginFd = Annotated[int | None, typer.Option(hidden=True)]
Lifeline = Annotated[bool, typer.Option("--lifeline", hidden=True)]


def run() -> None:
    """Run the command line; turn what an operator can mend into a sentence and an exit status."""
    # A shell that starts us in the background has us ignore Ctrl-C; and SIGTERM, too, must let us tidy up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except Refusal as refusal:
        err.print(str(refusal), style="red", markup=False, soft_wrap=True)
        sys.exit(refusal.exit_status)
    except EngineFault as fault:
        err.print(str(fault), style="red", markup=False, soft_wrap=True)
        sys.exit(EXIT_COULD_NOT_START)
    except SystemExit as end:
        # Typer makes a silent status of Ctrl-C; who pressed it wants to know that nothing runs on.
        if end.code == EXIT_STOPPED:
            say("Stopped.")
        raise
    except BrokenPipeError:
        # Whoever read our output has read enough of it; nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    workers: Workers = 1,
    data_dir: DataDir = surroundings.DEFAULT_DATA_DIR,
    migrate: Annotated[
        bool, typer.Option(help="Migrate the database first, or refuse to serve when it is not at the newest.")
    ] = True,
    announce_fd: AnnounceFd = None,
    lifeline: Lifeline = False,
) -> None:
    """Serve the API. Without CLOCKTOWER_DATABASE_URL and CLOCKTOWER_REDIS_URL it runs engines of its own."""
    from app.cli.serve import ServeOptions
    from app.cli.serve import serve as serve_now

    options = ServeOptions(host, port, workers, data_dir, migrate, announce_fd, lifeline)
    raise typer.Exit(serve_now(options))


@app.command()
def worker(
    *,
    data_dir: DataDir = surroundings.DEFAULT_DATA_DIR,
    wait_seconds: Annotated[
        float, typer.Option(min=0, max=3_600, help="Seconds to wait at the start for servers that do not answer.")
    ] = 60.0,
    announce_fd: AnnounceFd = None,
    begin_fd: BeginFd = None,
    lifeline: Lifeline = False,
) -> None:
    """Run a background worker; `clocktower serve` runs one by itself.

    Exit status 2 when a server was not reached at the start. One that goes away later is waited for.
    """
    from app.cli.background import work
    from app.cli.lifeline import end_with_parent, wait_for_word
    from app.core.logs import configure_logs

    if lifeline:
        end_with_parent()
    settings = surroundings.enter(data_dir)
    configure_logs(settings)
    if begin_fd is not None:
        wait_for_word(begin_fd)
    uvloop.run(work(settings, wait_seconds=wait_seconds, announce_fd=announce_fd))


@app.command()
def migrate(
    *,
    data_dir: DataDir = surroundings.DEFAULT_DATA_DIR,
    check: Annotated[bool, typer.Option("--check", help="Compare models and migrations afterwards.")] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use engines of its own, in a directory that is removed afterwards.")
    ] = False,
) -> None:
    """Bring the database to the newest migration."""
    from app.cli.database import require_models_match, upgrade
    from app.cli.scratch import scratch_engines

    def bring_up() -> None:
        upgrade(surroundings.enter(data_dir))
        if check:
            require_models_match()

    if embedded:
        with scratch_engines():
            bring_up()
    else:
        bring_up()
    say("The database stands at the newest migration" + (", and the models say the same." if check else "."))


@app.command()
def seed(
    *,
    data_dir: DataDir = surroundings.DEFAULT_DATA_DIR,
    number: Annotated[int, typer.Option("--seed", min=0, help="Which town: the same number, the same town.")] = 2026,
) -> None:
    """Make the demonstration town: 29 stations, 90 points, half a year of activities."""
    from app.cli.town import make_town

    added = make_town(data_dir, seed=number)
    say(
        f"The town stands; added {added.units} units, {added.stations} stations, {added.points} points, "
        f"{added.activities} activities with {added.sessions} sessions."
    )


@app.command()
def grant(
    openid: Annotated[str, typer.Argument(help="The WeChat open id, before or after its first sign-in.")],
    role: Annotated[str, typer.Argument(help="operator, staff, town_officer, …")],
    *,
    scope: Annotated[str | None, typer.Option(help="What the role is limited to, as station:ID.")] = None,
    data_dir: DataDir = surroundings.DEFAULT_DATA_DIR,
) -> None:
    """Grant a role: the first operator gets it here, the others from an operator."""
    from app.cli.upkeep import grant as grant_now

    grant_now(data_dir, openid, role, scope)


@app.command()
def reconcile(
    release_ids: Annotated[
        list[UUID] | None,
        typer.Argument(metavar="[RELEASE]...", help="Which releases; every one that claims can still change if none."),
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what differs, and change nothing.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make the state anew from PostgreSQL, whatever is found.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Every release that claims can still change: the same as naming none.")
    ] = False,
    data_dir: DataDir = surroundings.DEFAULT_DATA_DIR,
) -> None:
    """Say on what Redis and PostgreSQL disagree, and mend it; claims may come and go meanwhile.

    What is unfinished is swept; only a contradiction leads to a rebuild. Exit status 0 when they agree in the end, 1
    when a difference is left (with --dry-run: when there is one), 2 when it could not be looked.
    """
    from app.cli.reconcile import reconcile as reconcile_now

    if release_ids and everything:
        raise Refusal("Name releases, or say --all.")
    if dry_run and rebuild:
        raise Refusal("--dry-run changes nothing and --rebuild does: leave one of them out.")
    reconcile_now(data_dir, release_ids or [], dry_run=dry_run, rebuild=rebuild)


@app.command()
def doctor(*, data_dir: DataDir = surroundings.DEFAULT_DATA_DIR) -> None:
    """Look at settings, servers, migrations and releases, and say what mends what is wrong."""
    from app.cli.doctor import doctor as look

    look(data_dir)


@app.command()
def settings() -> None:
    """List every setting: its variable, default, limits, and what it is for."""
    from app.cli.settings_table import settings_table

    console = out if out.is_terminal else Console(width=_TABLE_COLUMNS)
    console.print(settings_table())


@app.command()
def rehearse(
    *,
    parents: Parents = 5000,
    workers: Workers = 1,
    seconds_before: SecondsBefore = 20.0,
    seed: Seed = None,
    json: Annotated[Path | None, typer.Option(help="Write the verdict to this file, as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the verdict to this file, as a page with charts.")] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Against a server of its own, whose data is removed afterwards.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="Against the server at this URL.")] = None,
    release: Annotated[UUID | None, typer.Option(help="Rush this release instead of making one.")] = None,
    operator_code: Annotated[str | None, typer.Option(help="A WeChat code that signs in an operator.")] = None,
    data_dir: DataDir = surroundings.DEFAULT_DATA_DIR,
) -> None:
    """Rehearse an opening. Exit status 1 when a promise was broken, 2 when it could not take place.

    Without --embedded and --address, against the server that runs on --data-dir.
    """
    from app.cli.rehearse import (
        Reports,
        operator_of_running,
        rehearse_at,
        rehearse_embedded,
    )
    from loadtest.rehearsal import RehearsalOptions

    if embedded and (address or release or operator_code):
        raise Refusal("--embedded brings its own address, release and operator: leave the others out.")
    reports = Reports(json, html)
    # First of all: what follows starts a server, or makes a town on one that runs.
    reports.require_writable()
    if not embedded and address is None:
        address, own_code = operator_of_running(data_dir)
        operator_code = operator_code or own_code
    options = RehearsalOptions(
        base_url=address or "",
        parents=parents,
        seed=secrets.randbelow(_SEEDS) if seed is None else seed,
        seconds_before=seconds_before,
        operator_code=operator_code,
        release_id=None if release is None else str(release),
        workers=workers if embedded else None,
    )
    if embedded:
        raise typer.Exit(rehearse_embedded(options, reports, workers=workers))
    raise typer.Exit(rehearse_at(options, reports))


@app.command()
def demo(
    *,
    data_dir: DataDir = surroundings.DEFAULT_DATA_DIR,
    port: Port = 8000,
    workers: Workers = 1,
    parents: Parents = 2000,
    seconds_before: SecondsBefore = 20.0,
    seed: Seed = 2026,
    reports_dir: Annotated[Path, typer.Option(help="Where demo.json and demo.html go.")] = Path("build"),
    leave: Annotated[bool, typer.Option("--exit", help="End with the verdict instead of serving on.")] = False,
) -> None:
    """Show the main job: a town, a release of 300 places, two thousand parents, the verdict."""
    from app.cli.demo import DemoOptions
    from app.cli.demo import demo as show

    leave = leave or os.environ.get("CI", "").lower() in {"1", "true", "yes"}
    chosen = secrets.randbelow(_SEEDS) if seed is None else seed
    options = DemoOptions(data_dir, reports_dir, port, parents, chosen, seconds_before, workers, leave)
    raise typer.Exit(show(options))
