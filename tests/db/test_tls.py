"""TLS by URL: libpq's names are translated into asyncpg's arguments."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi
import pytest
from sqlalchemy.engine import make_url

from worker import load_settings
from worker.db.tls import take_tls
from worker.errors import SettingsError
from worker.settings import asyncpg_url
from worker.types import Database


def url(query: str) -> str:
    return asyncpg_url(f"postgres://u:p@h/d?{query}")


def test_a_mode_alone_is_left_to_the_driver() -> None:
    left, tls = take_tls(make_url(url("sslmode=require")))
    assert (left.query["ssl"], tls) == ("require", {})


@pytest.mark.parametrize(
    ("mode", "hostname", "verified"),
    [("verify-full", True, True), ("verify-ca", False, True), ("require", False, True)],
)
def test_a_root_certificate_is_verified_as_libpq_does(mode: str, hostname: bool, verified: bool) -> None:
    left, tls = take_tls(make_url(url(f"sslmode={mode}&sslrootcert={certifi.where()}")))
    context = tls["ssl"]
    assert not left.query
    assert context.check_hostname is hostname
    assert (context.verify_mode == ssl.CERT_REQUIRED) is verified
    assert context.cert_store_stats()["x509_ca"] > 50


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "root.crt"
    settings = load_settings(environment={"DATABASE_URL": f"postgres://h/d?sslmode=verify-full&sslrootcert={missing}"})
    with pytest.raises(SettingsError, match=r"root\.crt cannot be read"):
        Database(settings)
