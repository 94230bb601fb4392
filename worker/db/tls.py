"""TLS parameters of libpq's URLs, `sslmode`, `sslrootcert`, `sslcert` and `sslkey`, converted for asyncpg.

With `require`, a root certificate that is given is verified, too; `verify-full` checks the host's name as well:
https://www.postgresql.org/docs/current/libpq-ssl.html
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from worker.errors import SettingsError

_FILES = ("sslrootcert", "sslcert", "sslkey")


def take_tls(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return a URL without its certificate files, and the arguments for asyncpg that replace them.

    Raises:
        SettingsError: A file cannot be read, or is not a certificate or key.
    """
    files = {name: str(url.query[name]) for name in _FILES if name in url.query}
    if not files:
        return url, {}
    mode = str(url.query.get("ssl", "verify-full"))
    try:
        context = ssl.create_default_context(cafile=files.get("sslrootcert"))
        if "sslcert" in files:
            context.load_cert_chain(files["sslcert"], files.get("sslkey"))
    except (OSError, ssl.SSLError) as error:
        shown = ", ".join(str(Path(file)) for file in files.values())
        raise SettingsError(f"database.url: the certificates {shown} cannot be read: {error}") from error
    context.check_hostname = mode == "verify-full"
    if "sslrootcert" not in files and mode not in ("verify-ca", "verify-full"):
        context.verify_mode = ssl.CERT_NONE
    return url.difference_update_query([*_FILES, "ssl"]), {"ssl": context}
