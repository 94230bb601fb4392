"""Reads the files of deploy/."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def documents(folder: str = "kubernetes") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each document of the YAML files of a folder, with the name of its file."""
    for file in sorted((DEPLOY / folder).glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield file.name, document


def find(kind: str, name: str) -> dict[str, Any]:
    """Return a Kubernetes object."""
    [found] = [each for _, each in documents() if each["kind"] == kind and each.get("metadata", {}).get("name") == name]
    return found


def compose() -> dict[str, Any]:
    """Return the file of Compose."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


@dataclass(frozen=True)
class Instruction:
    """An instruction of the Containerfile."""

    name: str
    value: str


def instructions() -> list[Instruction]:
    """Return the instructions of the Containerfile."""
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    return [Instruction(*line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage."""
    found: list[list[Instruction]] = []
    for each in instructions():
        if each.name == "FROM":
            found.append([])
        found[-1].append(each)
    return found


def environment_of(stage: list[Instruction]) -> dict[str, str]:
    """Return the environment that a stage sets."""
    return dict(each.value.split("=", 1) for each in stage if each.name == "ENV")  # type: ignore[misc]


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Return the sections of a unit of systemd, with all values of each key."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections
