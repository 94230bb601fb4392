"""docs/reference/wire-format.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from worker.queue import payload
from worker.queue.result import Result, encode_result
from worker.queue.scripts import PUBLIC, script

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire-format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PUBLIC)
async def test_the_page_has_the_arguments_of_each_public_script_and_the_command_prints_it(
    name: str, cli: CommandLine
) -> None:
    header = script(name).split("\n\n")[0]
    arguments = re.sub(r"^-- ?", "", header[header.index("-- KEYS") :], flags=re.MULTILINE)
    assert f"`{name}`:\n\n```text\n{arguments}\n```" in PAGE
    printed = await cli("keys", "--script", name)
    assert (printed.returncode, printed.stdout) == (0, script(name))


async def test_a_script_that_is_not_public_is_rejected(cli: CommandLine) -> None:
    assert (await cli("keys", "--script", "requeue")).returncode == 2


def test_the_page_has_every_key_of_payloads_calls_and_results() -> None:
    known = set(re.findall(r"^\| ((?:`\w+`,? ?)+) \|", PAGE, flags=re.MULTILINE))
    listed = {name for cell in known for name in re.findall(r"`(\w+)`", cell)}
    documented = set(re.findall(r"^\| `(\w+)`", payload.__doc__ or "", flags=re.MULTILINE))
    result = encode_result(None, Result(False, "x", True, 9), run_id="a", queue="q", attempt=1, started_ms=1)
    written = set(re.findall(r'"(\w+)":', result.decode()))
    assert (set(payload._CALL_TYPES) | documented | written) - listed == set()


def test_the_example_is_a_payload() -> None:
    [example] = re.findall(r"^redis-cli SET \S+ '(.*)'$", PAGE, flags=re.MULTILINE)
    read = payload.decode_payload(example.encode(), accept_pickle=False)
    assert (read.function, read.kwargs, read.headers) == ("retire_hamlets", {"below": 5}, {"tenant": "north"})
    assert read.next_calls == ({"f": "retire_hamlets", "k": {"below": 6}, "d": 500},)
