"""The files of deploy/ agree with the settings, with each other, and with a real worker."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.deploy.fields import KINDS, SERVICE, unknown_fields
from tests.deploy.manifests import (
    DEPLOY,
    ROOT,
    compose,
    documents,
    environment_of,
    find,
    instructions,
    stages,
    unit,
)
from worker.cli import app
from worker.settings import Settings
from worker.settings.model import sections

WORKER_PORT, WEB_PORT = 9464, 8080
LONGHAUL_SERVICES = ("migrate", "worker", "web")
#: The longest time, in seconds, that a drain takes by the default settings: `Worker.shutdown_seconds`, and more.
RULES = Settings().worker
DRAIN_SECONDS = RULES.drain_timeout_seconds + max(RULES.drain_timeout_seconds, 5.0) + 15.0


def seconds(text: str) -> float:
    """Return a duration of Compose or of the Containerfile in seconds."""
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found, text
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


def pod(name: str) -> dict[str, Any]:
    """Return the specification of the pods of a deployment."""
    found: dict[str, Any] = find("Deployment", name)["spec"]["template"]["spec"]
    return found


def container(name: str) -> dict[str, Any]:
    """Return the container of a deployment."""
    [found] = pod(name)["containers"]
    return dict(found)


def check_environment(names: list[str]) -> None:
    """Fail unless the settings know each variable."""
    for name in names:
        if name.startswith("LONGHAUL_"):
            section, _, field = name.removeprefix("LONGHAUL_").lower().partition("__")
            assert field in sections()[section].model_fields, name
        else:
            assert name in ("DATABASE_URL", "REDIS_URL"), name


def check_command(command: list[str]) -> None:
    """Fail unless the command line knows the command and its options."""
    known: Any = typer.main.get_command(app)
    with known.make_context("worker", [], resilient_parsing=True) as context:
        name, found, rest = known.resolve_command(context, command[1:])
        found.make_context(name, list(rest), parent=context)  # fails with an unknown option


# --- Kubernetes


def test_every_object_of_kubernetes_has_known_fields_alone() -> None:
    for file, document in documents():
        form = KINDS[document["apiVersion"], document["kind"]]
        assert unknown_fields(document, form, f"{file}: {document['kind']}") == []
    listed = find_kustomization()["resources"]
    # Migrate first, as the owner: not with the deployments.
    assert {*listed, "kustomization.yaml", "migrate.yaml"} == {file for file, _ in documents()}


def find_kustomization() -> dict[str, Any]:
    """Return the kustomization."""
    return next(document for _, document in documents() if document["kind"] == "Kustomization")


def test_pods_are_not_ended_before_they_have_drained() -> None:
    assert pod("longhaul-worker")["terminationGracePeriodSeconds"] > DRAIN_SECONDS
    assert RULES.drain_timeout_seconds + RULES.grace_period_seconds < DRAIN_SECONDS
    before_stop = container("longhaul-web")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod("longhaul-web")["terminationGracePeriodSeconds"] > before_stop + 30


@pytest.mark.parametrize(("name", "port"), [("longhaul-worker", WORKER_PORT), ("longhaul-web", WEB_PORT)])
def test_probes_ports_and_variables_of_pods_are_those_of_the_settings(name: str, port: int) -> None:
    found = container(name)
    [listed] = found["ports"]
    assert listed["containerPort"] == port
    assert str(port) in found["args"]
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert found[probe]["httpGet"] == {"path": path, "port": listed["name"]}
        assert found[probe]["timeoutSeconds"] > Settings().metrics.answer_seconds
    check_environment([one["name"] for one in found["env"]])
    check_command(found["args"])
    for volume in pod(name).get("volumes", ()):
        assert volume["name"] in {one["name"] for one in found["volumeMounts"]}
    security = found["securityContext"] | pod(name)["securityContext"]
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_a_blocked_event_loop_is_tolerated_by_each_watch_as_long_as_by_the_leases() -> None:
    probe = container("longhaul-worker")["livenessProbe"]
    tolerated = RULES.loop_block_tolerance_seconds
    assert probe["periodSeconds"] * (probe["failureThreshold"] - 1) > tolerated
    [check] = [each.value for each in stages()[-1] if each.name == "HEALTHCHECK"]
    options = dict(re.findall(r"--(\w+)=(\w+)", check))
    assert seconds(options["interval"]) * (int(options["retries"]) - 1) > tolerated
    assert int(unit("longhaul-worker.service")["Service"]["WatchdogSec"][0]) > tolerated


def test_objects_select_the_pods_that_exist() -> None:
    for name in ("longhaul-worker", "longhaul-web"):
        deployment = find("Deployment", name)
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert find("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == labels
    assert find("Service", "longhaul-web")["spec"]["selector"] == {"app.kubernetes.io/name": "longhaul-web"}
    assert (
        find("Service", "longhaul-web")["spec"]["ports"][0]["targetPort"]
        == container("longhaul-web")["ports"][0]["name"]
    )
    policy = find("NetworkPolicy", "longhaul-worker")["spec"]
    assert policy["ingress"][0]["ports"][0]["port"] == WORKER_PORT
    scaled = find("ScaledObject", "longhaul-worker")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "longhaul-worker"
    assert "replicas" not in find("Deployment", "longhaul-worker")["spec"]  # KEDA and `kubectl apply` would fight
    metrics = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for trigger in scaled["triggers"]:
        [metric] = re.findall(r"longhaul_\w+", trigger["metadata"]["query"])
        assert f"| `{metric}` | gauge | `queue` |" in metrics


def test_every_image_of_longhaul_has_the_version_of_this_tree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = "".join(file.read_text() for file in (DEPLOY / "kubernetes").glob("*.yaml"))
    assert set(re.findall(r"image: (\S+)", text)) == {f"longhaul:{version}"}
    assert find_kustomization()["images"] == [{"name": "longhaul", "newName": "longhaul", "newTag": version}]


# --- Compose


def test_compose_has_known_fields_alone_and_the_environment_of_the_settings() -> None:
    found = compose()
    for name, service in found["services"].items():
        assert unknown_fields(service, SERVICE, name) == []
        if name in LONGHAUL_SERVICES:
            check_environment(list(service["environment"]))
            check_command(service["command"])
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
        for other, rule in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other == "migrate" else "service_healthy"
            assert other in found["services"] and rule == {"condition": wanted}
        for secret in service.get("secrets", ()):
            assert secret in found["secrets"]
    worker, web = found["services"]["worker"], found["services"]["web"]
    assert seconds(worker["stop_grace_period"]) > DRAIN_SECONDS
    assert str(WORKER_PORT) in worker["command"]
    assert (
        web["ports"] == [f"127.0.0.1:{WEB_PORT}:{WEB_PORT}"]
        and f":{WEB_PORT}/healthz" in web["healthcheck"]["test"][-1]
    )
    assert (DEPLOY / worker["build"]["context"] / worker["build"]["dockerfile"]).exists()
    text = (DEPLOY / "compose.yaml").read_text()
    assert set(re.findall(r"PASSWORD: (\S*)", text)) | set(re.findall(r":(\S*)@", text)) <= {
        *("${POSTGRES_PASSWORD:?set", "${VALKEY_PASSWORD:?set"),
    }


# --- Containerfile


def test_the_containerfile_has_two_stages_and_runs_without_root() -> None:
    build, last = stages()
    assert build[0].value.endswith(" AS build") and last[0].value == build[0].value.removesuffix(" AS build")
    values = {each.name: each.value for each in last}
    assert values["USER"] == "10001:10001"
    assert values["EXPOSE"] == str(WORKER_PORT) and f":{WORKER_PORT}/healthz" in values["HEALTHCHECK"]
    command = [part.strip('" ') for part in values["CMD"].strip("[]").split(",")]
    check_command(command)
    assert command[-2:] == ["--metrics-port", str(WORKER_PORT)]
    known = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    check_environment([name for name in environment_of(last) if name not in known])
    assert not [each for each in last if each.name == "RUN"]
    assert "ARG" not in {each.name for each in instructions()}


def test_what_the_containerfile_copies_exists_and_reaches_the_build() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for each in instructions():
        if each.name == "COPY" and not each.value.startswith("--from"):
            for source in each.value.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(Path(source).match(pattern) for pattern in allowed), f"{source} is in .dockerignore"


def test_the_locks_of_the_image_are_part_of_that_of_the_tests() -> None:
    def pinned(file: Path) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==(\S+)", file.read_text(), re.MULTILINE))

    tested = pinned(ROOT / "requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["web"], *extras["metrics"]]
    names = {re.split(r"[\[<>=;~! ]", text)[0].lower() for text in needed} - {"longhaul-worker"}
    image = pinned(DEPLOY / "requirements.lock")
    assert names <= image.keys()
    assert "hatchling" in pinned(DEPLOY / "build.lock")
    for found in (image, pinned(DEPLOY / "build.lock")):
        assert {name: tested.get(name) for name in found} == found, "run make lock"


# --- systemd


def test_units_agree_with_the_settings_and_the_exit_codes() -> None:
    for name, command in (("longhaul-worker.service", "run"), ("longhaul-web.service", "web")):
        service = unit(name)["Service"]
        [start] = service["ExecStart"]
        check_command(["worker", *start.split()[1:]])
        assert start.split()[1] == command
        assert service["RestartPreventExitStatus"] == ["2 78"]
        assert "Environment" not in service  # secrets would be visible in the unit
    service = unit("longhaul-worker.service")["Service"]
    assert service["Type"] == ["notify"] and service["NotifyAccess"] == ["main"]
    assert int(service["TimeoutStopSec"][0]) > DRAIN_SECONDS
    assert "AF_UNIX" in service["RestrictAddressFamilies"][0]  # the socket of the service manager


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["longhaul-worker.service", "longhaul-web.service"])
def test_systemd_knows_each_key_of_a_unit(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / name).read_text().replace("/srv/longhaul/.venv/bin/worker", sys.executable)
    tmp_path.joinpath(name).write_text(re.sub(r"^User=.*", "User=root", text, flags=re.MULTILINE))
    command = ["systemd-analyze", "verify", "--man=no", "--generators=no", str(tmp_path / name)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    about_it = [line for line in ran.stderr.splitlines() if name in line]
    assert about_it == []
