"""The layout of `worker top`: rates, columns, bands, and words."""

from __future__ import annotations

import pytest

from worker.cli.top.format import bar, duration, per_second, plain
from worker.cli.top.frame_builder import Rates
from worker.cli.top.layout import fit, heights, line, natural
from worker.cli.top.tables import Cell, Column, Row, Sheet


def test_rates_are_over_a_window_and_begin_anew_with_other_data() -> None:
    rates = Rates()
    rates.add(100.0, {("a", "succeeded"): 5})
    assert rates.rate("succeeded") is None
    for second in range(1, 31):
        rates.add(100.0 + second, {("a", "succeeded"): 5 + (second if second > 20 else 0), ("a", "dead"): 1})
    assert rates.rate("succeeded", "a") == pytest.approx(3.0)  # 30 in the last 10 s
    assert rates.rate("dead") == 0
    assert rates.rate("succeeded", "b") == 0
    rates.add(131.0, {("a", "succeeded"): 1})
    assert rates.rate("succeeded") is None


def test_columns_fit_into_what_there_is() -> None:
    columns = (Column("run", soft=True), Column("rows/s", right=True), Column("age", rank=1), Column("state"))
    row = Row("x", (Cell("a-very-long-id-of-a-run"), Cell("7"), Cell("12 min"), Cell("running")))
    sheet = Sheet("runs", "", columns, [row])
    assert fit(sheet, natural(sheet), 60) == [23, 6, 6, 19]
    assert fit(sheet, natural(sheet), 40) == [23, 6, 0, 7]
    widths = fit(sheet, natural(sheet), 32)
    assert widths == [15, 6, 0, 7]
    assert [piece.text for piece in line(sheet, row.cells, widths)] == ["a-very-long-id…  ", "     7  ", "running  "]


def test_bands_share_the_page_and_the_focused_one_has_more() -> None:
    wanted = {"top": 7, "runs": 1003, "middle": 60, "bottom": 90}
    assert heights(50, wanted, "runs") == {"top": 7, "runs": 21, "middle": 11, "bottom": 11}
    assert heights(50, wanted, "bottom") == {"top": 7, "runs": 5, "middle": 11, "bottom": 27}
    assert sum(heights(19, wanted, "middle").values()) == 19
    assert min(heights(19, wanted, "middle").values()) >= 4


def test_words_are_short() -> None:
    assert [duration(one) for one in (None, 0.4, 89, 754, 12_000, 187_200)] == [
        *("", "0 s", "89 s", "13 min", "3 h 20 min", "2 d 4 h")
    ]
    assert [per_second(one) for one in (None, 0, 0.04, 3.5, 9208.2)] == ["", "0", "0.04", "3.5", "9,208"]
    assert (bar(38, 10), bar(0, 4), bar(100, 4), bar(250, 4)) == ("███▊······", "····", "████", "████")
    assert plain("a\x1b[2J\nb") == "a [2J b"
