"""Settings from settings.toml, environment and command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import worker
from worker.errors import SettingsError
from worker.settings import load_settings, load_with_origins, mask_passwords, parse_redis_url


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[worker]\nmax_jobs = 3\nmax_attempts = 4\nlease_seconds = 7\n")
    settings, origins = load_with_origins(
        file,
        {"worker": {"max_attempts": 6}},
        {"LONGHAUL_WORKER__MAX_ATTEMPTS": "5", "LONGHAUL_WORKER__LEASE_SECONDS": "8"},
    )
    assert (settings.worker.max_jobs, settings.worker.lease_seconds, settings.worker.max_attempts) == (3, 8, 6)
    assert origins["worker.max_jobs"] == str(file)
    assert origins["worker.lease_seconds"] == "environment LONGHAUL_WORKER__LEASE_SECONDS"
    assert origins["worker.max_attempts"] == "command line"
    assert origins["worker.queue"] == "default"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[worker]\nmax_job = 3", "worker.max_job; did you mean worker.max_jobs"),
        ("[workr]\nmax_jobs = 3", "workr.*did you mean worker"),
        ("[worker]\nmax_jobs = 'many'", "worker.max_jobs = 'many'"),
        ("[worker\n", "not valid TOML"),
        ("[worker]\nresult_ttl_seconds = inf", "worker.result_ttl_seconds = inf"),
        ("[worker]\ndead_letter_ttl_days = 1e300", "worker.dead_letter_ttl_days = 1e"),
        ("[worker]\nrun_retention_days = nan", "worker.run_retention_days = nan"),
    ],
)
def test_a_typing_error_names_file_key_and_the_nearest_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(file, environment={})
    assert str(file) in str(caught.value)


def test_lists_and_mappings_come_from_the_environment_as_json_or_as_a_list_with_commas() -> None:
    environment = {
        "LONGHAUL_WORKER__PACKAGES": "jobs, more.jobs",
        "LONGHAUL_WORKER__MIDDLEWARE": '["one:two"]',
        "LONGHAUL_WORKER__QUEUES": '{"arq:urgent": 9}',
    }
    settings = load_settings(environment=environment)
    assert settings.worker.packages == ["jobs", "more.jobs"]
    assert settings.worker.middleware == ["one:two"]
    assert settings.worker.queues == {"arq:urgent": 9}
    with pytest.raises(SettingsError, match=r"environment LONGHAUL_WORKER__QUEUES: worker\.queues = 'arq:urgent'"):
        load_settings(environment={"LONGHAUL_WORKER__QUEUES": "arq:urgent"})


def test_settings_load_neither_the_database_nor_the_queue() -> None:
    code = (
        "import sys, types\n"
        "package = types.ModuleType('worker')\n"
        f"package.__path__ = {list(worker.__path__)!r}\n"
        "sys.modules['worker'] = package\n"
        "import worker.settings\n"
        "print([name for name in ('sqlalchemy', 'asyncpg', 'alembic', 'arq', 'redis') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_postgresql_urls_become_those_of_asyncpg(scheme: str) -> None:
    settings = load_settings(environment={"DATABASE_URL": f"{scheme}://u:p@h:1/d?sslmode=require"})
    assert settings.database.url == "postgresql+asyncpg://u:p@h:1/d?ssl=require"
    assert "p@" not in mask_passwords(settings.database.url)


def test_a_pool_that_is_too_small_is_a_warning() -> None:
    assert load_settings(environment={}).pool_warning() is None
    small = load_settings(environment={}, overrides={"database": {"pool_size": 2, "max_overflow": 0}})
    assert "worker.max_jobs" in (small.pool_warning() or "")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://h", "a Redis URL must start with redis://"),
        ("redis://h/abc", "the database of a Redis URL must be a number"),
        ("redis://h?ssl_ca_certs=x", "ssl_ca_certs needs TLS: write rediss://"),
        ("rediss://h?ssl_ca_cert=x", r"unknown option 'ssl_ca_cert' in the URL; did you mean ssl_ca_certs\?"),
        ("redis+sentinel://h1,h2", "must be the name of the primary"),
        ("redis+sentinel://h:x/m", "'h:x' is not the address of a Sentinel"),
        ("unix://?db=1", "needs a path"),
        ("redis+cluster://h:7000/1", "a Redis Cluster has no numbered databases"),
        ("redis+cluster://h?db=2", "a Redis Cluster has no numbered databases"),
        ("redis+cluster://h:x", "'h:x' is not the address of a node"),
        ("redis://h?namespace=a}b", "the namespace 'a}b' must be 1 to 64 letters"),
        ("redis://h?namespace=", "the namespace '' must be 1 to 64 letters"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_a_reason(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(environment={"REDIS_URL": url})


@pytest.mark.parametrize(
    ("url", "namespace", "prefix"),
    [
        ("redis://h", None, ""),
        ("redis://h/0?namespace=shop", None, "{shop}:"),
        ("unix:///run/v.sock?namespace=shop&db=1", "shop", "{shop}:"),
        ("redis+sentinel://h/m?namespace=shop", None, "{shop}:"),
        ("redis+cluster://h", None, "{longhaul}:"),
        ("rediss+cluster://h1,[::1]:7000/0", "a.b-c", "{a.b-c}:"),
    ],
)
def test_the_namespace_is_that_of_the_setting_or_of_the_url(url: str, namespace: str | None, prefix: str) -> None:
    settings = load_settings(environment={"REDIS_URL": url}, overrides={"redis": {"namespace": namespace}})
    assert settings.redis.prefix == prefix
    assert "namespace" not in parse_redis_url(url).url  # redis-py does not know the option


def test_two_namespaces_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"is 'a', and redis\.url has namespace=b: keep one"):
        load_settings(environment={"REDIS_URL": "redis://h?namespace=b", "LONGHAUL_REDIS__NAMESPACE": "a"})


def test_the_nodes_of_a_cluster_have_the_credentials_and_the_options_of_the_url() -> None:
    found = parse_redis_url("rediss+cluster://u:p%40@h1:7000,[::1]/?namespace=shop&ssl_ca_certs=ca.pem")
    options = "?ssl_ca_certs=ca.pem&ssl_check_hostname=true"
    assert found.cluster == (f"rediss://u:p%40@h1:7000{options}", f"rediss://u:p%40@[::1]:6379{options}")
