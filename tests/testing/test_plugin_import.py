"""The pytest plugin in an environment without the extra `testing`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTRA = ("pytest_asyncio", "fakeredis", "aiosqlite")

TESTS = """
def test_plain():
    assert True

def test_with_a_fixture_of_longhaul(run_job):
    raise AssertionError("not reached")
"""


def _check(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 passed, 1 error" in run.stdout
    assert "the fixture run_job of longhaul-worker needs pytest_asyncio" in run.stdout
    assert "longhaul-worker[testing]" in run.stdout


def test_plugin_loads_neither_database_nor_queue_before_a_fixture_is_used() -> None:
    heavy = ("sqlalchemy", "asyncpg", "arq", "redis")
    code = f"import sys, worker.testing.plugin; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_plugin_without_the_extra_leaves_other_tests_alone(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    for found in Path(sysconfig.get_path("purelib")).iterdir():
        if not found.name.startswith((*EXTRA, "__editable__", "_longhaul", "longhaul")):
            packages.joinpath(found.name).symlink_to(found)
    metadata = packages / "longhaul_worker-0.1.0.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: longhaul-worker\nVersion: 0.1.0\n")
    metadata.joinpath("entry_points.txt").write_text("[pytest11]\nlonghaul = worker.testing.plugin\n")
    packages.joinpath("worker").symlink_to(ROOT / "worker")
    tests = tmp_path / "test_them.py"
    tests.write_text(TESTS)
    run = subprocess.run(
        [folder / "bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    _check(run)
