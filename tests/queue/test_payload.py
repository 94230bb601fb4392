"""Payloads, character by character."""

from __future__ import annotations

import pytest

from worker.queue.payload import without_expiry


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (
            r'{"f":"a","k":{"text":"\u20ac","until":1,"n":12345678901234567890},"until":5,"deadline":6}',
            r'{"f": "a", "k": {"text": "\u20ac", "until": 1, "n": 12345678901234567890}}',
        ),
        ('{"f":"a","deadline":6}', '{"f": "a"}'),
        ('{"f":"a"}', '{"f":"a"}'),
        ("no JSON", "no JSON"),
        ('["until"]', '["until"]'),
    ],
)
def test_only_expiry_and_deadline_leave_a_payload(raw: str, left: str) -> None:
    assert without_expiry(raw) == left
