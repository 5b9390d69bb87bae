"""The catalogue of what can break, and how each is broken and mended.

A fault is struck while the crowd is at it. It tells when it struck and when it was over: what the release may cost
beyond that is measured from there. Whatever it leaves broken, the stand's own end cleans up.
"""

from collections.abc import Mapping
from typing import Final

from tests.chaos.faults import postgres, valkey, workers
from tests.chaos.faults.storms import STORMS
from tests.chaos.faults.strikes import HELD_SECONDS, Fault, Strike
from tests.chaos.faults.wires import both_down, wires
from tests.chaos.faults.workers import crashing
from tests.chaos.stand import PAUSE_SECONDS

__all__ = ["FAULTS", "Fault", "Strike"]

_CATALOGUE: Final = (
    Fault("nothing", "nothing breaks: what the others are to be compared with", workers.nothing),
    Fault("web_killed", "a web worker is killed", workers.kill_web),
    Fault(
        "web_frozen",
        f"a web worker is stopped for {PAUSE_SECONDS:.0f} s, past the pending deadline",
        workers.freeze_web,
    ),
    Fault("background_killed", "the background worker is killed", workers.kill_background),
    Fault(
        "background_frozen", f"the background worker is stopped for {PAUSE_SECONDS:.0f} s", workers.freeze_background
    ),
    crashing("crash_after_script", "a worker dies between script and commit", "after_the_script"),
    crashing("crash_before_commit", "a worker dies before a group commit", "before_the_commit"),
    crashing("crash_after_commit", "a worker dies after a group commit", "after_the_commit"),
    crashing("crash_before_confirmation", "a worker dies before a confirmation", "before_the_confirmation"),
    crashing(
        "crash_rebuilding", "a worker dies in the middle of a rebuild", "while_rebuilding", after=valkey.flush_all
    ),
    crashing(
        "crash_before_activation",
        "a worker dies between the commit of a rebuild and its activation",
        "before_the_activation",
        after=valkey.flush_all,
    ),
    crashing("crash_handing_over", "a worker dies in the middle of a hand-over", "while_handing_over"),
    crashing("crash_handed_over", "a worker dies after a hand-over, before the gate hears", "after_handing_over"),
    crashing(
        "crash_sweeping",
        "a worker leaves orphans, and whoever sweeps them dies between the tombstones and the places",
        "while_sweeping",
        after=workers.leave_orphans,
    ),
    Fault("valkey_killed", "Valkey is killed and comes back empty after a while", valkey.kill_valkey),
    Fault("valkey_emptied", "Valkey is killed and comes back empty at once", valkey.empty_valkey),
    Fault("valkey_frozen", f"Valkey is stopped for {PAUSE_SECONDS:.0f} s", valkey.freeze_valkey),
    Fault("flushall", "FLUSHALL", valkey.flush_all),
    Fault("script_flush", "SCRIPT FLUSH", valkey.flush_scripts),
    Fault("valkey_full", f"Valkey has no memory left for {HELD_SECONDS:.0f} s", valkey.fill_valkey),
    Fault("old_copy_promoted", "an old copy takes over while the old primary lives on", valkey.promote_an_old_copy),
    Fault("postgres_killed", "PostgreSQL is killed and comes back after a while", postgres.kill_postgres),
    Fault("postgres_restarted", "PostgreSQL is restarted, immediate", postgres.restart_postgres),
    Fault("postgres_frozen", f"PostgreSQL is stopped for {PAUSE_SECONDS:.0f} s", postgres.freeze_postgres),
    Fault("backend_killed", "a backend of PostgreSQL is killed", postgres.kill_backend),
    Fault("backend_frozen", f"a backend of PostgreSQL is stopped for {PAUSE_SECONDS:.0f} s", postgres.freeze_backend),
    Fault("backends_terminated", "PostgreSQL ends every session of the gate", postgres.terminate_backends),
    Fault("row_locked", f"somebody holds row locks on places for {postgres.LOCK_SECONDS:.0f} s", postgres.lock_a_row),
    Fault("connections_exhausted", "others take every connection of PostgreSQL", postgres.exhaust_connections),
    Fault("disk_full", "PostgreSQL's disk is full", postgres.fill_the_disk, on_a_small_disk=True),
    *wires(),
    Fault(
        "both_down_postgres_first",
        "both engines are killed; PostgreSQL comes back first",
        both_down(postgres_first=True),
    ),
    Fault(
        "both_down_valkey_first", "both engines are killed; Valkey comes back first", both_down(postgres_first=False)
    ),
    *STORMS,
    Fault("clocks_apart", "the workers' clocks are two hours apart", workers.nothing, "clocks_apart"),
)
FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _CATALOGUE}
