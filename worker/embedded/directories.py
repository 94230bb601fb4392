"""Creates the folders of embedded servers: temporary folders that the servers' user can enter."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "longhaul-"


def server_user() -> str | None:
    """Return the user that servers run as: None (ourselves), or `nobody` when we are root.

    PostgreSQL refuses to run as root, and the creation of a user would change the system outside our folder.
    """
    return "nobody" if os.geteuid() == 0 else None


def others_may_enter(path: Path) -> bool:
    """Return whether users who do not own the folders above `path` may enter all of them."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def make_home(*preferred: str) -> Path:
    """Create a temporary folder for one set of servers, and remove the folders whose owner has died.

    Args:
        preferred: folders to create it in, if the servers can use them; by default the temporary folders of the system.

    Raises:
        RuntimeError: no temporary folder can be entered by the user that the servers run as.
    """
    user = server_user()
    for candidate in dict.fromkeys([*preferred, tempfile.gettempdir(), "/tmp", "/var/tmp"]):  # noqa: S108
        base = Path(candidate)
        if not base.is_dir() or not os.access(base, os.W_OK):
            continue
        if user is not None and not others_may_enter(base / "x"):
            continue
        _clear_abandoned(base)
        home = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
        if user is not None:
            home.chmod(0o711)  # the servers' user may enter, to reach its own folder
        return home
    raise RuntimeError(
        "no temporary folder is open to the user 'nobody', which embedded PostgreSQL runs as under root; "
        "set TMPDIR to a folder that this user can enter"
    )


def make_data_dir(home: Path, name: str) -> Path:
    """Create a folder below `home` that belongs to the user that servers run as."""
    folder = home / name
    folder.mkdir(mode=0o700)
    user = server_user()
    if user is not None:
        shutil.chown(folder, user=user)
    return folder


def _clear_abandoned(base: Path) -> None:
    """Remove the folder of a process that was ended with SIGKILL and could not remove it."""
    for folder in base.glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).split("-", 1)[0]
        if not owner.isdigit() or not folder.is_dir() or folder.stat().st_uid != os.geteuid():
            continue
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue
