"""Payloads, byte by byte."""

from __future__ import annotations

import pytest

from worker.queue.codec import without_expiry


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (b'{"f":"a","k":{"text":"\\ud800","n":12345678901234567890},"until":5}',
         b'{"f":"a","k":{"text":"\\ud800","n":12345678901234567890}}'),
        (b'{"f": "a"}', b'{"f": "a"}'),
        (b"\xff no JSON", b"\xff no JSON"),
        (b"\x80\x04N.", b"\x80\x04N."),
        (b"[1]", b"[1]"),
    ],
)  # fmt: skip
def test_only_the_expiry_leaves_a_payload(raw: bytes, left: bytes) -> None:
    assert without_expiry(raw) == left
