"""Reads payloads and writes results for a worker with arq's arguments: with its serializers, as pickles, or as JSON.

A result has the format of its payload, so that the client that enqueued the job can read it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import Any

from arq.jobs import Deserializer, Serializer, serialize_job
from pydantic_core import to_json

from worker.errors import InvalidPayload, format_error
from worker.queue.decoding import MAX_BYTES
from worker.queue.payload import Payload, decode_payload, now_ms, payload_from_values

logger = logging.getLogger("arq.worker")


class ArqCodec:
    """Decodes payloads and encodes results of arq's jobs.

    Args:
        serializer: `job_serializer` of the worker; None for pickles.
        deserializer: `job_deserializer` of the worker; None for pickles and JSON.
        accept_pickle: whether pickles are read, and written by default.
        max_bytes: longest payload that is read without `deserializer`.
    """

    def __init__(
        self,
        serializer: Serializer | None,
        deserializer: Deserializer | None,
        *,
        accept_pickle: bool,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._serializer = serializer
        self._deserializer = deserializer
        self._accept_pickle = accept_pickle
        self._max_bytes = max_bytes

    def read(self, raw: bytes) -> Payload:
        """Return a payload.

        Raises:
            InvalidPayload: it is not a payload, or it is a pickle and pickles are not accepted.
        """
        if self._deserializer is not None:
            try:
                return payload_from_values(self._deserializer(raw), pickled=True)
            except InvalidPayload:
                raise
            except Exception as error:
                if raw[:1] != b"{":  # clients of Longhaul always enqueue JSON
                    raise InvalidPayload(f"job_deserializer cannot read the payload: {format_error(error)}") from error
        return decode_payload(raw, accept_pickle=self._accept_pickle, max_bytes=self._max_bytes)

    def call(self, name: str) -> bytes:
        """Return the payload of a job without arguments."""
        if self._serializer is None and not self._accept_pickle:
            return Payload(name, [], {}, now_ms()).to_json().encode()
        return serialize_job(name, (), {}, None, now_ms(), serializer=self._serializer)

    def write(self, values: dict[str, Any], payload: Payload | None) -> bytes | None:
        """Return a result in the format of its payload.

        Args:
            values: arq's mapping; `r` is the error if the job failed.
            payload: the payload; None if it could not be read.

        Returns:
            The result, or the error that it cannot be serialized; None if that error cannot be serialized either.
        """
        serialize = self._writer(payload)
        value = values["r"]
        try:
            return serialize(values)
        except Exception as error:  # noqa: BLE001 - the user's serializer or values raise anything
            if not isinstance(value, BaseException):
                logger.warning("error serializing result of %s:%s: %s", values["id"], values["f"], format_error(error))
        text = format_error(value) if isinstance(value, BaseException) else "unable to serialize result"
        try:
            return serialize(values | {"r": text, "s": False})
        except Exception as error:  # noqa: BLE001
            logger.error("error serializing result of %s:%s: %s", values["id"], values["f"], format_error(error))
            return None

    def _writer(self, payload: Payload | None) -> Callable[[dict[str, Any]], bytes]:
        if payload is not None and not payload.pickled:
            return to_json
        if self._serializer is not None:
            return self._serializer
        return _pickle if self._accept_pickle else to_json


def _pickle(values: dict[str, Any]) -> bytes:
    raw = pickle.dumps(values)
    if isinstance(values["r"], BaseException):
        pickle.loads(raw)  # noqa: S301 - pickled above: some errors can be pickled but not unpickled
    return raw
