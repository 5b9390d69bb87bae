"""The door at which Prometheus asks for the numbers of a service: one of its own, and none unless an operator names it.

It is apart from the API's, so that no proxy in front of that can let the public in by mistake. `clocktower serve` opens
it in the process that looks after the others, which adds up what each of them has counted.
"""

import os
import tempfile
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, cast

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.cli.refusal import Refusal, say
from app.core.settings import ENVIRONMENT_PREFIX, Settings, host_and_port

# Where the library has each process of a server leave its numbers.
DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_VARIABLE: Final = ENVIRONMENT_PREFIX + "METRICS_ADDRESS"


class _AddedUp(Collector):
    """Adds up the numbers of several processes; what the dead have counted still counts, what they held does not."""

    def __init__(self, directory: Path, living: Callable[[], Collection[int]]) -> None:
        self._directory = directory
        self._living = living
        self._files = MultiProcessCollector(None, path=str(directory))

    def collect(self) -> Iterable[Metric]:
        living = self._living()
        for path in self._directory.glob("gauge_live*.db"):
            # The library names them by the process.
            if int(path.stem.rpartition("_")[2]) not in living:
                path.unlink(missing_ok=True)
        return cast("Iterable[Metric]", self._files.collect())  # pyright: ignore[reportUnknownMemberType] - untyped


@contextmanager
def numbers_of_children(settings: Settings, living: Callable[[], Collection[int]]) -> Generator[None]:
    """Let the processes that are started meanwhile leave their numbers, and show their sum, if an address is named.

    `living` returns the process ids of those that live. Raises `Refusal` when the address cannot be listened on.
    """
    if not settings.metrics_address:
        yield
        return
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clocktower-metrics-")))
        registry = CollectorRegistry()
        registry.register(_AddedUp(directory, living))
        stack.enter_context(_door(settings, registry))
        before = os.environ.get(DIRECTORY_VARIABLE)
        os.environ[DIRECTORY_VARIABLE] = str(directory)
        try:
            yield
        finally:
            os.environ.pop(DIRECTORY_VARIABLE)
            if before is not None:
                os.environ[DIRECTORY_VARIABLE] = before


@contextmanager
def own_numbers(settings: Settings) -> Generator[None]:
    """Show the numbers of this process, if an address is named and nobody adds them up. Raises `Refusal`."""
    if not settings.metrics_address or os.environ.get(DIRECTORY_VARIABLE):
        yield
        return
    with _door(settings, REGISTRY):
        yield


@contextmanager
def _door(settings: Settings, registry: CollectorRegistry) -> Generator[None]:
    host, port = host_and_port(settings.metrics_address)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise Refusal(
            f"{_VARIABLE}: {settings.metrics_address} cannot be listened on ({error.strerror or error}); name another "
            "address, or none."
        ) from error
    say(f"Metrics at http://{settings.metrics_address.rpartition(':')[0]}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
