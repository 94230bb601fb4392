"""The registry: discovery of jobs, and errors for modules that cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker import JobContext, discover, job
from worker.errors import RegistrationError, UnknownJob
from worker.types import Registry

BROKEN = {
    "import": ('raise ImportError("no module named stripe")', r"ImportError: no module named stripe \(.*broken.py:1\)"),
    "missing": ("import not_there_at_all", r"ModuleNotFoundError: No module named 'not_there_at_all'"),
    "value": ("\n\n1 / 0", r"ZeroDivisionError: division by zero \(.*broken.py:3\)"),
    "exit": ("import sys; sys.exit(3)", r"SystemExit: 3"),
    "syntax": ("def f(:", r"SyntaxError: "),
    "cancelled": ("import asyncio; raise asyncio.CancelledError", r"CancelledError \(.*broken.py:1\)"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which modules are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("how", BROKEN)
def test_a_module_that_cannot_be_imported_is_one_clear_error(project: Path, how: str) -> None:
    source, message = BROKEN[how]
    package = project / f"shop_{how}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "broken.py").write_text(source)
    with pytest.raises(RegistrationError, match=rf"^module shop_{how}.broken cannot be imported: {message}"):
        discover([package.name])


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(RegistrationError, match=r"worker\.packages: there is no package 'nothere'"):
        discover(["nothere"])


def test_a_type_without_a_schema_is_found_when_the_jobs_are_loaded(project: Path) -> None:
    source = """
from __future__ import annotations
from worker import JobContext, job

@job
async def wrong(ctx: JobContext, thing: Later) -> None: ...

class Later: ...
"""
    (project / "later_types.py").write_text(source)
    with pytest.raises(RegistrationError, match="job wrong: argument thing: Later cannot be converted to JSON"):
        discover(["later_types"])


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["alone", "two"])
def test_worker_run_ends_with_code_2_when_jobs_cannot_be_imported(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "broken_jobs.py").write_text("raise ImportError('no module named stripe')")
    command = [sys.executable, "-m", "worker", "--set", 'worker.packages=["broken_jobs"]', "run", *options]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.count(": started as ") in (0, 2), "no process is started again"
    assert "module broken_jobs cannot be imported: ImportError: no module named stripe" in ran.stderr
    assert "Traceback" not in ran.stderr


@job(name="twice")
async def one(ctx: JobContext) -> None:
    """Do nothing."""


@job(name="twice")
async def two(ctx: JobContext) -> None:
    """Do nothing."""


def test_registry_refuses_two_jobs_of_one_name_and_names_the_nearest() -> None:
    with pytest.raises(RegistrationError, match=r"job 'twice' is defined twice: in .*test_registry:\d+ and .*:\d+"):
        Registry([one, two])
    with pytest.raises(UnknownJob, match="did you mean twice"):
        Registry([one]).find("twise")
