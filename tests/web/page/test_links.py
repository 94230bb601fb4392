"""The views that the targets of an order lead to."""

from __future__ import annotations

import pytest

from worker.web.page.links import Names, link_target

NAMES = Names(frozenset({"walk"}), frozenset({"arq:queue"}))


@pytest.mark.parametrize(
    ("order", "target", "view", "parameters"),
    [
        ("enqueue", "r1", "run", {"run_id": "r1"}),
        ("cancel", "walk", "run", {"run_id": "walk"}),
        ("cancel", "walk?size=3", "job", {"job": "walk"}),
        ("cancel", "gone?size=3", "run", {"run_id": "gone?size=3"}),
        ("retry", "r1", "run", {"run_id": "r1"}),
        ("dead_letters_retry", "r1", "run", {"run_id": "r1"}),
        ("quarantine_retry", "r1", "run", {"run_id": "r1"}),
        ("pause", "walk", "job", {"job": "walk"}),
        ("resume", "walk?size=3", "job", {"job": "walk"}),
        ("cron_run", "walk", "job", {"job": "walk"}),
        ("pace", "r1", "run", {"run_id": "r1"}),
        ("pause", "arq:queue", "limits", {"search": "arq:queue"}),
        ("limit", "walk", "job", {"job": "walk"}),
        ("limit", "gone", "limits", {"search": "gone"}),
        ("rate", "gone", "limits", {"search": "gone"}),
    ],
)
def test_a_target_leads_to_its_view(order: str, target: str, view: str, parameters: dict[str, str]) -> None:
    assert link_target(order, target, NAMES) == (target, view, parameters)


@pytest.mark.parametrize(
    ("order", "target"),
    [("pause", "*"), ("pace", "*"), ("drain", "north"), ("outbox_delete", "7"), ("quarantine_discard", "7")],
)
def test_a_target_without_a_view_is_no_link(order: str, target: str) -> None:
    assert link_target(order, target, NAMES) is None
