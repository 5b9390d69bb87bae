"""What this process has counted, as it rises."""

from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import REGISTRY


def _read(name: str, labels: dict[str, str]) -> float:
    return REGISTRY.get_sample_value(f"clocktower_{name}_total", labels) or 0.0


@contextmanager
def rises(name: str, *, by: int, **labels: str) -> Generator[None]:
    """Hold the body to raising a number by just so much."""
    before = _read(name, labels)
    yield
    assert _read(name, labels) - before == by, f"{name} {labels}"
