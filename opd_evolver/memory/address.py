"""What the site may name as a server's address. Errors never repeat one: people put keys into it."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_address(url: str) -> bool:
    """Whether a URL is http(s)://host[:port][/path], without user, password, query or fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port  # no number or out of range raises
    except ValueError:
        return False
    alone = not ("@" in parts.netloc or parts.query or parts.fragment or any(one.isspace() for one in url))
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and alone
