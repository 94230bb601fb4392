"""`Idempotency-Key`: a request that a client repeats, because it got no answer, enqueues one run."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from worker.errors import InvalidPayload
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.decoding import read_json
from worker.web.problems import Problem

LONGEST_KEY = 255


class IdempotencyClaim(NamedTuple):
    """The record of a key.

    Attributes:
        name: the key in Redis.
        request: the fingerprint of the request.
        run_id: the id of its run.
        is_done: whether the run was enqueued.
    """

    name: str
    request: str
    run_id: str
    is_done: bool


class IdempotencyKeys:
    """Remembers the keys of requests in Redis.

    Args:
        client: the client of the queue.
        hours: the time for which a key is remembered.
    """

    def __init__(self, client: Client, hours: float) -> None:
        self._client = client
        self._seconds = max(1, round(hours * 3600))

    async def claim(self, key: str, *, caller: str, request: str) -> IdempotencyClaim:
        """Return the run of a key, which this call has chosen or an earlier request.

        Args:
            key: the value of the header.
            caller: who sends the request: two callers may use the same key.
            request: the body of the request.

        Raises:
            Problem: the key is not valid, or belongs to another request.
        """
        if not 1 <= len(key) <= LONGEST_KEY or not (key.isascii() and key.isprintable()):
            text = f"the header Idempotency-Key has 1 to {LONGEST_KEY} printable ASCII characters"
            raise Problem(422, "invalid-idempotency-key", text)
        digest = hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest()[:32]
        name, fingerprint = keys.IDEMPOTENT + digest, hashlib.sha256(request.encode()).hexdigest()
        value = json.dumps({"run": digest, "request": fingerprint, "done": False})
        redis = self._client.redis
        if await self._client.command(redis.set(name, value, nx=True, ex=self._seconds)):
            return IdempotencyClaim(name, fingerprint, digest, is_done=False)
        # It may have expired since; then another key is as good as none.
        found = await self._client.command(redis.get(name)) or value
        try:
            known = read_json(found, "the idempotency key")
            run_id, before, is_done = str(known["run"]), known["request"], known["done"] is True
        except (InvalidPayload, KeyError, TypeError):
            raise Problem(409, "corrupt-key", f"the key {name} in Redis was written by others: DEL {name}") from None
        if before != fingerprint:
            text = "the Idempotency-Key belongs to a request with another body: use another key"
            raise Problem(422, "idempotency-key-reused", text)
        return IdempotencyClaim(name, fingerprint, run_id, is_done=is_done)

    async def finish(self, claim: IdempotencyClaim, run_id: str) -> None:
        """Remember that the run of a claim was enqueued."""
        value = json.dumps({"run": run_id, "request": claim.request, "done": True})
        await self._client.command(self._client.redis.set(claim.name, value, ex=self._seconds))

    async def release(self, claim: IdempotencyClaim) -> None:
        """Forget the key of a request that was refused."""
        await self._client.command(self._client.redis.delete(claim.name))
