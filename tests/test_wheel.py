"""The wheel is built, installed in a fresh environment, and used in a project with its own package `jobs`."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from worker.embedded import Services

ROOT = Path(__file__).parent.parent

JOBS = '''
"""The jobs of a stranger's project."""

from worker import job


@job
async def greet(ctx, name: str) -> str:
    """Greet a person."""
    return f"hello, {name}"
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of the development environment."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    [packages] = folder.glob("lib/python*/site-packages")
    # A path in a .pth file has its own .pth files ignored: the editable install is not seen.
    packages.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [
        folder / "bin/python",
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
        "-q",
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.long
def test_wheel_holds_the_worker_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"worker", "longhaul_worker"}
    assert {"worker/py.typed", "worker/ledger/queries/checkpoint.sql", "worker/queue/scripts/enqueue.lua"} <= set(names)
    assert {
        f"worker/web/page/{name}" for name in ("templates/base.html", "static/style.css", "static/geist.woff2")
    } <= set(names)


@pytest.mark.long
def test_wheel_runs_the_jobs_of_the_project_it_is_installed_beside(
    environment: Path, tmp_path: Path, servers: Services
) -> None:
    project = tmp_path / "a project"
    (project / "jobs").mkdir(parents=True)
    (project / "jobs" / "__init__.py").write_text(JOBS)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [environment / "bin/worker", *arguments],
            cwd=project,
            env=servers.environment() | {"PYTHONNOUSERSITE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [environment / "bin/python", "-c", "import worker; print(worker.__file__)"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(environment))
    assert [line.split()[0] for line in run("jobs").splitlines()] == ["job", "greet"]
    run("migrate")
    run("enqueue", "greet", "name=World", "--id", "wheel-1")
    run("run", "--burst")
    assert "hello, World" in run("enqueue", "greet", "name=World", "--id", "wheel-1", "--wait", "--timeout", "30")
