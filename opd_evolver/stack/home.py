"""Prefect's home in processes of ours: a folder of the project, never the user's own.

Importing Prefect makes its home, and a flow without a server keeps a database there. Which server is spoken to
stays the user's choice: an address in the environment, in prefect.toml or in the active profile holds as before.
"""

from __future__ import annotations

import os
from pathlib import Path

from opd_evolver.durable import explained

LOCAL = Path(".opd") / "prefect-local"
# For a flow that starts Prefect's server for itself where no address is set. Not every profile of a user's allows it.
SERVERLESS = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
}


def users() -> Path:
    """The home that Prefect would take by itself."""
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")


def settle(project: Path | None = None) -> Path:
    """Move Prefect's home into the project, for this process and its children. Call it before Prefect is imported.

    Args:
        project: its folder; the current one when None. Where there is no project nothing is made: only a client
            can run there, and a client keeps nothing.

    Returns:
        The home.

    Raises:
        SetupError: no permission, or no space, to make it.
    """
    project = (project or Path.cwd()).resolve()
    theirs, ours = users().absolute(), project / LOCAL
    if (project / "flows").is_dir():
        with explained(ours):
            ours.mkdir(parents=True, exist_ok=True)
    else:
        ours = project
    if theirs != ours and (theirs / "profiles.toml").is_file():
        os.environ.setdefault("PREFECT_PROFILES_PATH", str(theirs / "profiles.toml"))
    os.environ["PREFECT_HOME"] = str(ours)
    return ours
