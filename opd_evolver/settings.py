"""Site parameters: where things are on this machine. From the environment or `.env`; they enter no key."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from opd_evolver.errors import SetupError
from opd_evolver.params import nearest

PREFIX = "OPD_"
# Read by the test suite, not by the program.
OF_TESTS = {"OPD_REQUIRE_WEAVIATE"}


class Settings(BaseSettings):
    """Each field is `OPD_<NAME>` in the environment or in `.env`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    artifact_root: Path = Path(".")
    device: str = "cpu"
    display: Literal["auto", "bars", "plain", "quiet"] = "auto"
    prefect_port: int | None = Field(None, ge=1, le=65535)
    mlflow_port: int | None = Field(None, ge=1, le=65535)
    mlflow_tracking_uri: str | None = None
    weaviate_url: str | None = None
    weaviate_api_key: SecretStr | None = None


def known_names() -> set[str]:
    return {PREFIX + name.upper() for name in Settings.model_fields} | OF_TESTS


def check_names(names: set[str]) -> None:
    """Refuse an unknown `OPD_…` name, since a misspelt one would silently do nothing.

    Raises:
        SetupError: names the nearest.
    """
    known = known_names()
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in known:
            raise SetupError(f"unknown setting {name}", "a site setting", nearest(name, known))


def _dotenv_names() -> set[str]:
    path = Path(".env")
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line.split("=", 1)[0].strip() for line in lines if "=" in line and not line.lstrip().startswith("#")}


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        SetupError: an unknown name or a wrong value.
    """
    check_names(set(os.environ) | _dotenv_names())
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise SetupError(f"{name} is not valid", str(first["msg"]), f"set {name} to such a value") from None
