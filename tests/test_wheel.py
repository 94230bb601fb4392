"""The wheel is built, installed in a fresh environment, and used in a project with its own package `jobs`."""

from __future__ import annotations

import subprocess
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.support.installed import build_wheel, make_environment, resolve
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
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def requirements_of(wheel: Path) -> list[str]:
    """Return the requirements of a wheel, those of its extras as well."""
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and what it requires without extras, as `pip install` would leave it."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    return make_environment(folder, wheel, resolve(requirements_of(wheel)))


@pytest.mark.long
def test_no_dependency_of_an_extra_is_installed_without_it(wheel: Path, environment: Path) -> None:
    requirements = requirements_of(wheel)
    core = resolve(requirements)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    own = {name: resolve(requirements, [name]) - core for name in extras}
    assert {"web", "metrics", "top", "parquet", "fsspec", "embedded", "testing"} <= own.keys()
    assert all(own.values()), "an extra brings nothing"
    optional = (
        "starlette",
        "uvicorn",
        "jinja2",
        "prometheus_client",
        "textual",
        "pyarrow",
        "fsspec",
        "zstandard",
        "pytest",
    )
    script = f"import importlib.util as i; print([n for n in {optional!r} if i.find_spec(n)])"
    shown = subprocess.run([environment / "bin/python", "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


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
