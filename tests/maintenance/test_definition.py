"""The jobs that the factories return are ordinary ones of the caller's module."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import true

import worker.maintenance
from tests.maintenance.tables import Tree, Visit
from worker import discover
from worker.errors import RegistrationError
from worker.maintenance import purge
from worker.throttles import RowsPerSecond

purge_old_visits = purge(
    Visit,
    older_than=timedelta(days=365),
    by=Visit.at,
    cron="0 3 * * *",
    timezone="Europe/London",
    throttle=[RowsPerSecond(1_000)],
    timeout=60,
    max_attempts=2,
)
named = purge(Visit, where=true(), name="purge_all")
listed = [purge(Visit, where=true())]


def test_job_has_the_name_of_its_variable_and_the_options_of_any_job() -> None:
    assert purge_old_visits.name == "purge_old_visits"
    assert (named.name, listed[0].name, purge(Tree, where=true()).name) == ("purge_all", "purge_visit", "purge_tree")
    assert purge_old_visits.function.__module__ == __name__
    assert purge_old_visits.summary == 'Delete rows of "My Shop".visit, with the rows that refer to them.'
    [line] = purge_old_visits.schedule
    assert (line.expression, line.timezone) == ("0 3 * * *", "Europe/London")
    assert [type(each) for each in purge_old_visits.throttles] == [RowsPerSecond]
    assert (purge_old_visits.rules.timeout, purge_old_visits.rules.max_attempts) == (60, 2)
    assert purge_old_visits.encode_arguments([], {"older_than": timedelta(days=1)}) == {"older_than": "P1D"}


def test_job_is_found_by_name_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_by_name.py").write_text(
        "from sqlalchemy import true\nfrom tests.maintenance.tables import Visit\n"
        "from worker.maintenance import backfill_column, purge\n"
        + "".join(f"unused_{n} = {n}\n" for n in range(300))  # the next names need a longer instruction
        + "clear = purge(Visit, where=true())\nfill: object = backfill_column(Visit, Visit.page, 'x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = discover(["found_by_name"])
    assert sorted(registry) == ["clear", "fill"]
    version = registry.code_version
    path = tmp_path / "found_by_name.py"
    path.write_text(path.read_text().replace("'x'", "'y'"))
    del registry.__dict__["code_version"]
    assert registry.code_version != version  # another argument is other code


def test_two_jobs_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_twice.py").write_text(
        "from sqlalchemy import true\nfrom tests.maintenance.tables import Visit\n"
        "from worker.maintenance import purge\n"
        "one, two = purge(Visit, where=true()), purge(Visit, where=true())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RegistrationError, match="'purge_visit' is defined twice"):
        discover(["found_twice"])


def test_room_is_loaded_when_it_is_used() -> None:
    code = (
        "import sys, worker; from worker import Client; print('worker.maintenance' in sys.modules);"
        "print(worker.maintenance.purge.__name__); from worker import maintenance;"
        "print(maintenance is worker.maintenance)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "purge", "True"]


def test_every_factory_is_documented_with_its_errors() -> None:
    for name in worker.maintenance.__all__:
        text = getattr(worker.maintenance, name).__doc__
        assert "Args:" in text
        assert "Raises:" in text
