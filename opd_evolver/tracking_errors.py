"""MLflow's many errors as ours: what may pass is an outage, the rest is set-up."""

from __future__ import annotations

import re

from opd_evolver.errors import OpdError, OutageError, SetupError

LIBRARIES = ("mlflow", "requests", "urllib3", "sqlalchemy", "alembic", "sqlite3")
_SILENT = re.compile(r"failed with (timeout )?exception|failed with error code 5\d\d")
_OTHER_SCHEMA = re.compile(r"not a database|database schema|locate revision")


def without_userinfo(text: str) -> str:
    """A text whose addresses name neither user nor password."""
    return re.sub(r"//[^/\s]*@", "//", text)


def ours(error: Exception, place: str) -> OpdError | None:
    """What an error of the tracking address means; None where it comes from no library that speaks to one.

    Args:
        error: as it was raised.
        place: the address, without credentials.
    """
    library = type(error).__module__.split(".")[0]
    if library not in LIBRARIES:
        return None
    first = without_userinfo((str(error).strip() or type(error).__name__).splitlines()[0])
    if library in ("requests", "urllib3") or _SILENT.search(first):
        return OutageError(
            f"MLflow at {place} does not answer",
            "a tracking server",
            "start it (opd up), or unset OPD_MLFLOW_TRACKING_URI to use the local file",
        )
    if "database is locked" in first:
        return OutageError(f"MLflow at {place}: another process has locked it", "a free database", "end that process")
    seen = f"MLflow at {place}: {first}"
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return SetupError(
            seen,
            "a user who may write there",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if _OTHER_SCHEMA.search(first):
        return SetupError(seen, "a database of this MLflow version", "move that file away")
    return SetupError(seen, "an MLflow that takes the round", "mend that, or choose another OPD_MLFLOW_TRACKING_URI")
