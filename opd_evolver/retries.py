"""What an HTTP server's answer says about trying again; both endpoint clients ask here."""

from __future__ import annotations

import email.utils
import time

_PASSING = {408, 409, 425, 429}


def may_pass(status: int) -> bool:
    """Whether a request that was answered with this status may succeed later, unchanged."""
    return status in _PASSING or status >= 500


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date; None without a readable one.

    Source: RFC 9110, 10.2.3.
    """
    if value is None:
        return None
    try:
        return min(max(0.0, float(value)), 1e9)
    except ValueError:
        pass  # then it may be a date
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
