"""Writes of the observers to Redis, many in one pipeline: a key of another type fails alone."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from worker.queue.key_problems import KeyProblemLog, wrong_type
from worker.queue.namespace import prefix_of
from worker.queue.outage_log import OutageLog


class RedisWriter:
    """Executes the pipelines of one observer, and logs their failures.

    Args:
        redis: the connection of the pipelines.
        outage: the log of outages.
        part: the observer and its failure, for that log, e.g. `the mirror cannot be written`.

    Attributes:
        problems: reports unsound keys.
        has_failed: whether the last pipeline has written nothing.
    """

    def __init__(self, redis: Redis, outage: OutageLog | None, part: str) -> None:
        self.problems = KeyProblemLog(prefix_of(redis))
        self.has_failed = False
        self._outage = outage or OutageLog()
        self._part = part

    async def execute(self, pipeline: Pipeline) -> bool:
        """Execute a pipeline, and report the keys of another type, which are not written.

        Returns:
            False if Redis has written nothing.
        """
        commands: list[Any] = list(pipeline.command_stack)
        try:
            answers = await pipeline.execute(raise_on_error=False)
            # A key of another type fails alone, and the others are written. Any other error applies to all of them.
            for answer in answers:
                if isinstance(answer, RedisError) and "WRONGTYPE" not in str(answer):
                    raise answer
        except RedisError as error:
            self.has_failed = True
            self._outage.failed(self._part, error)
            return False
        self.has_failed = False
        self._outage.answered(self._part)
        self.problems.report(
            wrong_type(command[0][1])
            for command, answer in zip(commands, answers, strict=False)
            if isinstance(answer, RedisError)
        )
        return True
