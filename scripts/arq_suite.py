"""A pytest plugin that runs arq's own tests against `worker.arq_compat`, on an embedded server. See docs/from-arq.md.

arq's tests are not part of this repository. They need the packages of arq's own group `testing`, but no container: this
plugin replaces `testcontainers`. Set `ARQ_SUITE_MIRROR=1` to publish runs under `worker:*` as well.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import arq
import arq.cli
import arq.worker

from worker import arq_compat
from worker.embedded.directories import make_home
from worker.embedded.valkey import EmbeddedValkey


class Worker(arq_compat.Worker):
    """Our worker, which writes arq's keys only, as the tests expect."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"mirror": os.environ.get("ARQ_SUITE_MIRROR") == "1"} | options)


class RedisContainer:
    """Replaces the class of `testcontainers` by an embedded server."""

    port = port_to_expose = 6379

    def __init__(self, image: str) -> None:
        self._server = EmbeddedValkey(make_home())

    def __enter__(self) -> RedisContainer:
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop()

    def get_container_host_ip(self) -> str:
        return "127.0.0.1"

    def get_exposed_port(self, port: int) -> int:
        return self._server.port


def _replace() -> None:
    arq.Worker = arq.worker.Worker = Worker  # type: ignore[misc]
    arq.run_worker = arq.worker.run_worker = arq.cli.run_worker = arq_compat.run_worker  # type: ignore[assignment]
    arq.worker.create_worker = arq.cli.create_worker = arq_compat.create_worker  # type: ignore[assignment]
    arq.worker.get_kwargs = arq_compat.get_kwargs
    containers: Any = types.ModuleType("testcontainers.redis")
    containers.RedisContainer = RedisContainer
    sys.modules["testcontainers"] = types.ModuleType("testcontainers")
    sys.modules["testcontainers.redis"] = containers


_replace()
