"""Payloads, character by character, and invalid payloads."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidPayload
from worker.queue.chain import make_follow_up
from worker.queue.dead_letters import DeadLetter, encode_letter
from worker.queue.payload import decode_payload, read_run_id, without_expiry
from worker.queue.result import Result, decode_result, encode_result


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
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_without_expiry_removes_expiry_and_deadline_alone(raw: str, left: str) -> None:
    assert without_expiry(raw) == left


HUGE = 10**5000

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, 1e300, "", "\0", "💥", "a" * 5_000, "worker:dead"])
    | st.text()
    | st.floats(allow_nan=True)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
calls = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("id", "f", "k", "v", "q", "d", "p", "x", "r", "surprise"), anything)
)
payloads = st.fixed_dictionaries(
    {"f": st.sampled_from(["echo", "noop"]) | anything},
    optional={
        **dict.fromkeys(
            ("t", "a", "k", "et", "v", "until", "deadline", "g", "h", "ledger", "only", "pickle"), anything
        ),
        "then": st.lists(calls, max_size=3) | anything,
    },
)


@given(payloads)
def test_decode_payload_returns_a_payload_that_can_be_written_or_raises(values: dict[str, Any]) -> None:
    """A payload that was read can be stored in the ledger, in a result, and in a script, which takes UTF-8 and JSON."""
    try:
        payload = decode_payload(json.dumps(values).encode(), accept_pickle=False)
    except InvalidPayload:
        return
    payload.arguments.encode()
    payload._replace(in_ledger=True).to_json().encode()
    payload.function.encode()
    assert payload.attempt is None or 0 <= payload.attempt <= 1_000_000
    follow_up = make_follow_up(payload, run_id="r", queue="q", success=True, result="null")
    json.dumps(follow_up).encode()
    encode_result(payload, Result(False, "x"), run_id="r", queue="q", attempt=1, started_ms=0).decode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 1_000_000,
        b'{"f":' * 100_000,
        b'{"f":"a","k":{"n":%b}}' % (b"9" * 5_000),
        rb'{"f":"a","k":{"text":"\ud800"}}',
        rb'{"f":"a","h":{"tenant":"\ud800"},"then":[{"f":"a"}]}',
        b'{"f":"a","t":9223372036854775808}',
        b'{"f":"a","t":-1}',
        b'{"f":"a","t":true}',
        b'{"f":"a","t":1.5}',
        b'{"f":"a","et":1e400}',
        b'{"f":"a","until":99999999999999999999}',
        b'{"f":"a","then":[{"f":"b","d":99999999999999999999}]}',
        b'{"f":"a","then":[{"f":"b","id":""}]}',
        b'{"f":"a","g":["g",true,true]}',
        b'{"f":"%b"}' % (b"a" * 501),
    ],
)
def test_decode_payload_refuses(raw: bytes) -> None:
    with pytest.raises(InvalidPayload):
        decode_payload(raw, accept_pickle=True)


def test_decode_payload_has_a_limit() -> None:
    raw = json.dumps({"f": "a", "k": {"text": "x" * 2_000}}).encode()
    assert decode_payload(raw, accept_pickle=False, max_bytes=len(raw)).function == "a"
    with pytest.raises(InvalidPayload, match=r"the payload has 2,0\d\d bytes; the limit is 2,000"):
        decode_payload(raw, accept_pickle=False, max_bytes=2_000)


@given(st.binary() | anything.map(lambda value: json.dumps(value).encode()))
def test_decode_result_raises_one_error(raw: bytes) -> None:
    with contextlib.suppress(InvalidPayload):
        decode_result(raw)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("job", "queue", "payload", "payload_base64", "error", "traceback", "ledger", "at", "attempts"), anything
        ),
    ),
    st.sampled_from(["2026-01-01", "2026-01-01T00:00:00+00:00", 0, 1e300, -1e300, "20260101T00", None]),
)
def test_dead_letter_is_one_that_can_be_shown_or_none(values: dict[str, Any], at: Any) -> None:
    letter = encode_letter(b"{}", job="x", queue="q", attempts=1, error="e", trace="", in_ledger=False)
    raw = json.dumps(json.loads(letter) | values | ({} if at is None else {"at": at})).encode()
    found = DeadLetter.read("x", raw)
    if found is None:
        return
    assert found.at.tzinfo is not None
    json.dumps(found.arguments)
    "".join([found.job, found.queue, found.error, found.traceback]).encode()
    assert type(found.attempts) is int
    assert type(found.in_ledger) is bool


@pytest.mark.parametrize(
    ("raw", "run_id"),
    [
        (b"a b", "a b"),
        ("é💥".encode(), "é💥"),
        (b"", None),
        (b"\xff", None),
        (b"a\nb", None),
        (b"a\x00b", None),
        (b"\x1b[31m", None),
        (b"x" * 501, None),
        ("\u202egpj".encode(), None),
    ],
)
def test_read_run_id_takes_what_can_be_printed(raw: bytes, run_id: str | None) -> None:
    assert read_run_id(raw) == run_id
