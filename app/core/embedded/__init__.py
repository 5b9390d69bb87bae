"""Starts a real PostgreSQL and a real Valkey under a data directory, and stops them with their owner.

Whatever a killed owner leaves behind, the next start on the same directory mends: running engines are stopped,
stale sockets and pid files removed, a half-made cluster thrown away. Two owners at once are refused.
Both engines listen on unix sockets in a private directory and on no network address.
"""

from app.core.embedded.engines import Engines, start_engines
from app.core.embedded.errors import (
    ClusterOfAnotherVersion,
    DataDirectoryInUse,
    DataDirectoryUnusable,
    DiskFull,
    EngineDidNotStart,
    EngineFault,
    EngineKeepsDying,
    EngineMissing,
    EngineWillNotStop,
    NotACluster,
    SystemUserMissing,
)

__all__ = [
    "ClusterOfAnotherVersion",
    "DataDirectoryInUse",
    "DataDirectoryUnusable",
    "DiskFull",
    "EngineDidNotStart",
    "EngineFault",
    "EngineKeepsDying",
    "EngineMissing",
    "EngineWillNotStop",
    "Engines",
    "NotACluster",
    "SystemUserMissing",
    "start_engines",
]
