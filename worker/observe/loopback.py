"""Names and addresses of this machine itself."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

_LOCAL_NAMES = ("localhost",)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine's own name or address."""
    if host.lower() in _LOCAL_NAMES:
        return True
    try:
        parsed = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def names_loopback(url: str) -> bool:
    """Return whether the host of a URL is this machine; a header `Host` is a URL after `//`."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
