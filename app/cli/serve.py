"""Runs the whole service: engines where none are given, web workers, the background worker, and their orderly end."""

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.cli import surroundings
from app.cli.lifeline import end_with_parent
from app.cli.processes import Child, Household, KeepsDying
from app.cli.refusal import EXIT_WRONG, say
from app.cli.sockets import address_of, is_reached_from_elsewhere, listening_sockets
from app.core.embedded import EngineFault, Engines, start_engines
from app.core.settings import ENVIRONMENT_PREFIX, Settings
from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET

# What a worker gets beyond its grace to close its connections.
_CLOSING_SECONDS: Final = 5.0
_FAKE_STOP_SECONDS: Final = 5.0
# Stand in for addresses that are known once the engines run, so that every other setting is checked before.
_DATABASE_TO_COME: Final = "postgresql://"
_REDIS_TO_COME: Final = "unix://"
_WECHAT_TO_COME: Final = "http://127.0.0.1"
_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve. `announce_fd` gets the address once it answers; with `lifeline` the end of input is a SIGTERM."""

    host: str
    port: int
    workers: int
    data_dir: Path
    migrate: bool = True
    announce_fd: int | None = None
    lifeline: bool = False


def serve(options: ServeOptions) -> int:
    """Serve until told to stop; return the exit status. Raises `Refusal` or `EngineFault` when it cannot start."""
    raise_file_limit()
    if options.lifeline:
        end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    # Until the children are looked after, every ending signal ends the start, and them, like Ctrl-C does.
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            return _Service(options, stack).run()
    except KeyboardInterrupt:
        say("Stopped before it served.")
        return 0


def raise_file_limit() -> None:
    """Allow this process and its children as many open files as the system lets them: each phone is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Service:
    """One run of the service. What it opens, the stack closes in the reverse order."""

    def __init__(self, options: ServeOptions, stack: ExitStack) -> None:
        self._options = options
        self._stack = stack
        self._engines: Engines | None = None
        self._webs: list[Child] = []
        self._workers: list[Child] = []
        self._fakes: list[Child] = []

    def run(self) -> int:
        """Open everything, serve, and return the exit status."""
        options = self._options
        embedded = surroundings.is_embedded()
        # Naming a part of WeChat is naming it wrongly, which the settings say; the fake is for those who name nothing.
        wants_fake = embedded and not any(os.environ.get(name) for name in surroundings.WECHAT)
        if embedded:
            self._prepare_environment(wants_fake=wants_fake)
        named = surroundings.checked_settings()
        # Before the engines: a port in use should not cost their start.
        listeners = listening_sockets(options.host, options.port, options.workers)
        for listener in listeners:
            self._stack.callback(listener.close)
        household = Household()
        if named.metrics_address:
            from app.cli.metrics import numbers_of_children  # noqa: PLC0415 - costs a start that shows none nothing

            self._stack.enter_context(numbers_of_children(named, household.living))
        self._stack.enter_context(household)
        # Whoever is started loads its modules while we do what comes next.
        if wants_fake:
            self._launch_fake_wechat(household)
        if embedded:
            self._start_engines()
        if wants_fake and not self._find_fake_wechat(household):
            return 0
        settings = surroundings.checked_settings()
        self._workers = [_background_worker(settings)]
        self._webs = [_web_worker(settings, number, listener) for number, listener in enumerate(listeners, 1)]
        children = [*self._webs, *self._workers]
        # More than the cores can carry would hold up what may refuse them: they load when it has not.
        loads_early = len(listeners) <= (os.cpu_count() or 1)
        if loads_early:
            household.launch(children, held=True)
        self._ready_database(settings)
        if not loads_early:
            household.launch(children)
        with household.listening():
            return self._look_after(household, listeners)

    def _prepare_environment(self, *, wants_fake: bool) -> None:
        for name, secret in surroundings.keep_secrets(self._options.data_dir).items():
            os.environ.setdefault(name, secret)
        if wants_fake:
            _point_at_fake_wechat(_WECHAT_TO_COME)
        if sys.stderr.isatty():
            os.environ.setdefault(ENVIRONMENT_PREFIX + "LOG_FORMAT", "console")
        os.environ[surroundings.DATABASE_URL] = _DATABASE_TO_COME
        os.environ[surroundings.REDIS_URL] = _REDIS_TO_COME

    def _start_engines(self) -> None:
        engines = start_engines(self._options.data_dir, progress=say)
        self._engines = engines
        self._stack.callback(_stop_engines, engines)
        os.environ[surroundings.DATABASE_URL] = engines.database_dsn
        os.environ[surroundings.REDIS_URL] = engines.redis_url

    def _ready_database(self, settings: Settings) -> None:
        # Loaded only now, since it takes a second, in which the workers load what they need.
        from app.cli.database import require_connections, require_head, upgrade  # noqa: PLC0415 - see above
        from app.cli.reach import require_redis  # noqa: PLC0415 - see above

        if self._options.migrate:
            upgrade(settings)
        else:
            require_head(settings)
        asyncio.run(require_redis(settings))
        # The background worker is one process more.
        require_connections(settings, self._options.workers + 1)

    def _look_after(self, household: Household, listeners: Sequence[socket.socket]) -> int:
        try:
            if not household.await_ready([*self._webs, *self._workers]):
                return 0
            self._open_for_business(listeners[0])
            household.keep(self._mend)
        except (KeepsDying, EngineFault) as trouble:
            say(str(trouble))
            return EXIT_WRONG
        else:
            return 0
        finally:
            # Whoever connects from here on is refused at once, and the others are answered.
            for listener in listeners:
                listener.close()
            if all(child.is_ready for child in self._webs):
                say("Stopping: answering what is in flight")
            household.end(self._webs)
            household.end(self._workers)
            household.end(self._fakes)

    def _launch_fake_wechat(self, household: Household) -> None:
        self._fakes = [Child("fake WeChat", ["app.wechat.fake", "--lifeline"], stop_seconds=_FAKE_STOP_SECONDS)]
        household.launch(self._fakes)

    def _find_fake_wechat(self, household: Household) -> bool:
        """Wait for it, and point everybody at it. False when a stop was asked for meanwhile."""
        if not household.await_ready(self._fakes):
            return False
        (fake,) = self._fakes
        # Should it have to be started again, everybody must find it where it was.
        fake.module = [*fake.module, f"--port={fake.said}"]
        _point_at_fake_wechat(f"http://127.0.0.1:{fake.said}")
        return True

    def _open_for_business(self, listener: socket.socket) -> None:
        options = self._options
        address = address_of(listener)
        if self._engines is not None:
            surroundings.announce(options.data_dir, address)
            self._stack.callback(surroundings.withdraw, options.data_dir)
        workers = "1 web worker" if options.workers == 1 else f"{options.workers} web workers"
        where = f"data in {self._engines.data_dir}" if self._engines else "on servers given in the environment"
        say(f"Clocktower serves at {address} ({workers}, {where}).")
        if self._fakes and is_reached_from_elsewhere(listener):
            say("Sign-in is by the fake WeChat: whoever reaches this address can sign in as anybody, operators too.")
        say(f"API docs: {address}/docs  To stop: Ctrl-C.")
        if options.announce_fd is not None:
            with os.fdopen(options.announce_fd, "w") as announcement:
                announcement.write(address + "\n")

    def _mend(self) -> None:
        if self._engines is not None:
            for name in self._engines.mend():
                say(f"{name} had died and was started again.")


def _stop_engines(engines: Engines) -> None:
    # Impatience may cut requests short, never the engines' own end.
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    say("Stopping PostgreSQL and Valkey")
    engines.stop()


def _point_at_fake_wechat(base_url: str) -> None:
    os.environ.update(zip(surroundings.WECHAT, (base_url, DEMO_APP_ID, DEMO_APP_SECRET), strict=True))


def _web_worker(settings: Settings, number: int, listener: socket.socket) -> Child:
    listener_fd = listener.fileno()
    return Child(
        f"web worker {number}",
        ["app.cli.web", f"--listen-fd={listener_fd}"],
        # Requests get the grace, and what they left to be committed gets it once more.
        stop_seconds=2 * settings.shutdown_grace_seconds + _CLOSING_SECONDS,
        inherited_fd=listener_fd,
    )


def _background_worker(settings: Settings) -> Child:
    return Child(
        "background worker",
        ["app.cli", "worker", "--lifeline"],
        stop_seconds=settings.shutdown_grace_seconds + _CLOSING_SECONDS,
    )
