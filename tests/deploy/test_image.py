"""The steps of the Containerfile, executed in plain folders, and the probes of the manifests on real processes.

No container engine takes part: base images, users and layers are not tested. Packages are linked from the environment
of the tests in place of `pip install -r requirements.lock`, those of the lock and no others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, compose, environment_of, find, stages
from tests.support.installed import ROOT, build_wheel, make_environment
from worker.embedded import Services

pytestmark = pytest.mark.long
_SECONDS = 90


class Image:
    """The folders of the image.

    Args:
        home: the folder that holds them.
        services: PostgreSQL and Valkey.
    """

    def __init__(self, home: Path, services: Services) -> None:
        self.build, self.last = stages()
        self.root = home / "srv"
        self.copy(self.build, home / "build")
        names = re.findall(r"^([\w.-]+)==", (home / "build" / "requirements.lock").read_text(), re.MULTILINE)
        wheel = build_wheel(home / "wheels", home / "build")
        self.programs = make_environment(home / "opt", wheel, names) / "bin"
        self.copy(self.last, self.root)
        self.environment = environment_of(self.last) | {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "DATABASE_URL": services.database_url,
            "REDIS_URL": services.redis_url,
        }

    def copy(self, stage: list, folder: Path) -> None:  # type: ignore[type-arg]
        """Execute the COPY of a stage into a folder."""
        folder.mkdir()
        for each in stage:
            if each.name == "COPY" and not each.value.startswith("--from"):
                *sources, target = each.value.split()
                for source in sources:
                    if (ROOT / source).is_dir():
                        ignored = shutil.ignore_patterns("__pycache__")
                        shutil.copytree(ROOT / source, folder / target, ignore=ignored)
                    else:
                        shutil.copy(ROOT / source, folder / target)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            command, cwd=self.root, env=self.environment | environment, capture_output=True, text=True, timeout=_SECONDS
        )

    @contextlib.contextmanager
    def running(self, command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command during a block."""
        process = subprocess.Popen(command, cwd=self.root, env=self.environment | environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, servers: Services) -> Image:
    """The image, with a migrated database."""
    made = Image(tmp_path_factory.mktemp("image"), servers)
    ran = made.run(*compose()["services"]["migrate"]["command"])
    assert ran.returncode == 0, ran.stderr
    return made


def free_port() -> str:
    """Return a free port: those of the manifests may be in use here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def until(look: object, process: subprocess.Popen[bytes]) -> None:
    """Poll until a function returns a true value, while the process runs."""
    deadline = time.monotonic() + _SECONDS
    while not look():  # type: ignore[operator]
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def answers(port: str, probe: dict[str, dict[str, str]]) -> bool:
    """Return whether a probe of Kubernetes succeeds."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{probe['httpGet']['path']}", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def test_the_worker_of_the_image_answers_its_probes_runs_a_job_and_drains(image: Image) -> None:
    port, values = free_port(), {each.name: each.value for each in image.last}
    command = json.loads(values["CMD"].replace('"9464"', f'"{port}"'))
    health = json.loads(values["HEALTHCHECK"].partition("CMD ")[2].replace("9464", port))
    [container] = find("Deployment", "longhaul-worker")["spec"]["template"]["spec"]["containers"]
    assert image.run(*health).returncode != 0
    with image.running(command) as process:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            until(lambda name=name: answers(port, container[name]), process)
        assert image.run(*health).returncode == 0
        for made in (["python", "-m", "jobs"], ["worker", "enqueue", "stream_partitioned", "--wait"]):
            ran = image.run(*made)
            assert ran.returncode == 0, ran.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0


def test_the_api_of_the_image_answers_its_probes_and_asks_for_a_token(image: Image) -> None:
    port, tokens = free_port(), str(image.root / "tokens.toml")
    service = compose()["services"]["web"]
    command = [port if part == "8080" else part for part in service["command"]]
    named = {"LONGHAUL_WEB__TOKENS_FILE": tokens}
    made = image.run("worker", "web", "token", "probe", "--role", "read", **named)
    assert made.returncode == 0, made.stderr
    [container] = find("Deployment", "longhaul-web")["spec"]["template"]["spec"]["containers"]
    assert [part for part in container["args"] if part != "8080"] == [
        part for part in service["command"] if part != "8080"
    ]
    with image.running(command, **named) as process:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            until(lambda name=name: answers(port, container[name]), process)
        check = [part.replace("8080", port) for part in service["healthcheck"]["test"][1:]]
        assert image.run(*check).returncode == 0
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/runs", timeout=5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0


def test_the_image_holds_no_program_of_the_tests(image: Image) -> None:
    written = {"tokens.toml", "tokens.toml.key"}  # by the test above, if the same process has run it
    assert {path.name for path in image.root.iterdir()} - written == {"jobs", "settings.toml"}
    assert "TOKEN" not in (DEPLOY / "Containerfile").read_text() and os.environ["PATH"] not in str(image.environment)
    for module in ("pytest", "textual", "pyarrow", "fakeredis"):
        assert image.run("python", "-c", f"import {module}").returncode == 1, module
