"""What a worker with arq's arguments reads and writes: by the serializers that it was given, or pickles, or JSON.

A result goes out in the form that its payload came in, so that whoever enqueued can read it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import Any

from arq.jobs import Deserializer, Serializer, serialize_job
from pydantic_core import to_json

from worker.errors import InvalidPayload, format_error
from worker.queue.payload import Payload, decode_payload, now_ms, payload_from_values

logger = logging.getLogger("longhaul.jobs")


class ArqCodec:
    """Payloads and results of arq's jobs.

    Args:
        serializer: of the worker's arguments; None for pickles.
        deserializer: of the worker's arguments; None for pickles and JSON.
        accept_pickle: whether pickles are read, and written where nothing says otherwise.
    """

    def __init__(
        self, serializer: Serializer | None, deserializer: Deserializer | None, *, accept_pickle: bool
    ) -> None:
        self._serializer = serializer
        self._deserializer = deserializer
        self._accept_pickle = accept_pickle

    def read(self, raw: bytes) -> Payload:
        """Return a payload.

        Raises:
            InvalidPayload: it is none, or a pickle, and those are not accepted.
        """
        if self._deserializer is not None:
            try:
                return payload_from_values(self._deserializer(raw), pickled=True)
            except InvalidPayload:
                raise
            except Exception as error:
                if raw[:1] != b"{":  # what a client of ours enqueues is JSON in any case
                    raise InvalidPayload(f"job_deserializer cannot read the payload: {format_error(error)}") from error
        return decode_payload(raw, accept_pickle=self._accept_pickle)

    def call(self, name: str) -> bytes:
        """Return the payload of a job without arguments."""
        if self._serializer is None and not self._accept_pickle:
            return Payload(name, [], {}, now_ms()).to_json().encode()
        return serialize_job(name, (), {}, None, now_ms(), serializer=self._serializer)

    def write(self, values: dict[str, Any], payload: Payload | None) -> bytes | None:
        """Return a result in the form of its payload.

        Args:
            values: arq's mapping; `r` is the error where the job failed.
            payload: the job; None where it could not be read.

        Returns:
            None where not even the fact that it cannot be written can be written.
        """
        serialize = self._writer(payload)
        value = values["r"]
        try:
            return serialize(values)
        except Exception as error:  # noqa: BLE001 - the serializer, or what it is given, is somebody's own
            if not isinstance(value, BaseException):
                logger.warning(
                    "%s %s: its result cannot be written: %s", values["f"], values["id"], format_error(error)
                )
        text = format_error(value) if isinstance(value, BaseException) else "unable to serialize result"
        try:
            return serialize(values | {"r": text, "s": False})
        except Exception as error:  # noqa: BLE001
            logger.error("%s %s: no result can be written: %s", values["f"], values["id"], format_error(error))
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
        pickle.loads(raw)  # noqa: S301 - our own: some errors can be pickled, and not made again by who reads it
    return raw
