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
    """Each field is `OPD_<NAME>` in the environment or in `.env`; the environment wins.

    Attributes:
        artifact_root: folder that holds runs/ and versions/.
        device: where generating and training processes put their tensors.
        display: progress on stderr; `auto` draws bars on a terminal and prints plain lines elsewhere.
        prefect_port: port of the local Prefect server; a free one when unset.
        mlflow_port: port of the local MLflow server; a free one when unset.
        mlflow_tracking_uri: a tracking server of your own; then `opd up` starts none.
        weaviate_url: where a shared memory is hosted.
        weaviate_api_key: its key; never printed.
        weaviate_grpc_port: its gRPC port, on the same host.
        weaviate_patience_s: how long a server that has stopped answering is waited for.
        embeddings_url: base of an OpenAI-compatible API, as `https://host/v1`, for `memory.embedder: endpoint:MODEL`.
        embeddings_api_key: its key; never printed.
        embeddings_batch: most texts of one request.
        embeddings_timeout_s: how long one request may take.
        embeddings_patience_s: how long an endpoint that fails is tried again.
        endpoint_url: base URL of an OpenAI-compatible server, for `policy.backend: endpoint`.
        endpoint_api_key: its key; never printed.
        endpoint_headers: further headers as a JSON object; never printed.
        endpoint_timeout_s: most seconds of one request.
        endpoint_patience_s: how long a server that fails is tried again.
        endpoint_concurrency: requests in flight.
        endpoint_requests_per_minute: no limit when unset.
        endpoint_stream: whether replies are read as they come.
        endpoint_price_prompt: cost of a million prompt tokens.
        endpoint_price_reply: cost of a million reply tokens.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    artifact_root: Path = Path(".")
    device: str = "cpu"
    display: Literal["auto", "bars", "plain", "quiet"] = "auto"
    prefect_port: int | None = Field(None, ge=1, le=65535)
    mlflow_port: int | None = Field(None, ge=1, le=65535)
    mlflow_tracking_uri: str | None = None
    weaviate_url: str | None = None
    weaviate_api_key: SecretStr | None = None
    weaviate_grpc_port: int = Field(50051, ge=1, le=65535)
    weaviate_patience_s: float = Field(300.0, ge=0)
    embeddings_url: str | None = None
    embeddings_api_key: SecretStr | None = None
    embeddings_batch: int = Field(32, ge=1, le=2048)
    embeddings_timeout_s: float = Field(60.0, gt=0)
    embeddings_patience_s: float = Field(300.0, ge=0)
    endpoint_url: str | None = None
    endpoint_api_key: SecretStr | None = None
    endpoint_headers: SecretStr | None = None
    endpoint_timeout_s: float = Field(300.0, gt=0)
    endpoint_patience_s: float = Field(600.0, ge=0)
    endpoint_concurrency: int = Field(8, ge=1, le=1024)
    endpoint_requests_per_minute: float | None = Field(None, gt=0)
    endpoint_stream: bool = True
    endpoint_price_prompt: float | None = Field(None, ge=0)
    endpoint_price_reply: float | None = Field(None, ge=0)


def known_names() -> set[str]:
    return {PREFIX + name.upper() for name in Settings.model_fields} | OF_TESTS


def check_names(names: set[str]) -> None:
    """Refuse an unknown `OPD_…` name, since a misspelt one would silently do nothing.

    Raises:
        SetupError: names the nearest.
    """
    known = known_names()
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise SetupError(f"unknown setting {name}", "a site setting", nearest(name.upper(), sorted(known)))


def dotenv() -> dict[str, str]:
    """What `.env` in this folder sets; empty when there is none.

    Raises:
        SetupError: it cannot be read.
    """
    from dotenv import dotenv_values

    try:
        return {name: value or "" for name, value in dotenv_values(".env").items()} if Path(".env").is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read .env: {error}", "a readable text file", "chmod u+r .env, or mend it") from None


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        SetupError: an unknown name or a wrong value.
    """
    check_names(set(os.environ) | set(dotenv()))
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise SetupError(f"{name} is not valid", str(first["msg"]), f"set {name} to such a value") from None
