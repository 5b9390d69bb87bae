"""Looks at the service from outside all through a round: how much memory its processes have, and its health checks."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Final

import httpx2
import psutil

from tests.chaos.stand import Stand

_LOOK_EVERY_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 5.0
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One health check: when it was asked, how long its answer took, and whether it was a yes."""

    asked_at: float
    seconds: float
    is_well: bool


@dataclass(slots=True)
class Watch:
    """What was seen. Memory is in MiB, the most that one of its kind had: before the fault, and in the whole round."""

    checks: list[Check] = field(default_factory=list[Check])
    memory_before_mib: dict[str, float] = field(default_factory=dict[str, float])
    memory_mib: dict[str, float] = field(default_factory=dict[str, float])

    async def keep(self, stand: Stand) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._weigh(stand))
            group.create_task(self._ask(stand.address))

    def begins(self) -> None:
        """Note that what was seen until now is how it is when nothing is wrong."""
        self.memory_before_mib = dict(self.memory_mib)

    async def _weigh(self, stand: Stand) -> None:
        while True:
            for kind, processes in stand.everybody().items():
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        mib = process.memory_info().rss / _MIB
                        self.memory_mib[kind] = max(self.memory_mib.get(kind, 0.0), mib)
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    async def _ask(self, address: str) -> None:
        async with httpx2.AsyncClient(base_url=address, timeout=_PATIENCE_SECONDS) as client:
            while True:
                asked_at = time.perf_counter()
                try:
                    is_well = (await client.get("/health/ready", headers={"connection": "close"})).is_success
                except httpx2.TransportError:
                    is_well = False
                self.checks.append(Check(asked_at, time.perf_counter() - asked_at, is_well))
                await asyncio.sleep(_LOOK_EVERY_SECONDS)
