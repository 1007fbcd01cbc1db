"""A Weaviate server of one's own on loopback: where its binary is, and how it is started.

REST, gossip and raft are bound to loopback. gRPC and the cluster's data port listen on every interface in this
version, hence the API key, which is made at the first start and kept in a file that only its owner reads: gRPC asks
for it, the data port for a password, which it is, too.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from opd_evolver.errors import SetupError
from opd_evolver.stack import services

BINARY = "weaviate-server"
INSTALL = "bash infra/weaviate/install.sh (builds it with Go, 3 to 5 minutes)"
HOST = "127.0.0.1"
PORTS = ("rest", "grpc", "gossip", "data", "raft", "raft_rpc")


def binary() -> str:
    """Path of the server: on PATH, or where `go install` puts it.

    Raises:
        SetupError: it is not there; names the command that builds it.
    """
    go_bin = Path(os.environ.get("GOBIN") or Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin")
    found = shutil.which(BINARY) or shutil.which(BINARY, path=str(go_bin))
    if found is None:
        raise SetupError(f"no {BINARY} on PATH or in {go_bin}", "the server's binary", INSTALL)
    return found


def key(path: Path) -> str:
    """The API key kept at `path`, made at the first call; readable by its owner alone."""
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    made = secrets.token_urlsafe(24)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(made + "\n")
    return made


def address_path(project: Path) -> Path:
    """Where runs in this folder find the server: written by `opd up`, removed by `opd down`."""
    return project / ".opd" / "weaviate.json"


def start(project: Path, inherited: Mapping[str, str]) -> tuple[services.Service, int]:
    """Starts the server of a project; its data and key stay in .opd/weaviate when it is stopped.

    Returns:
        The process, and the port of its REST interface.
    """
    ports = {name: services.choose_port(project, f"weaviate-{name}", None) for name in PORTS}
    home = project / ".opd" / "weaviate"
    api_key = key(home / "key")
    told = {"url": f"http://{HOST}:{ports['rest']}", "grpc_port": ports["grpc"], "api_key": api_key}
    path = address_path(project)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(told, file)
    environ = {**inherited, **environment(home / "data", api_key, ports)}
    return services.spawn(project, "weaviate", arguments(ports["rest"]), environ), ports["rest"]


def arguments(port: int) -> list[str]:
    """The server's command line."""
    return [binary(), "--host", HOST, "--port", str(port), "--scheme", "http"]


def environment(data: Path, api_key: str, ports: dict[str, int]) -> dict[str, str]:
    """What the server reads beside its command line.

    Args:
        data: its folder.
        api_key: of its one user.
        ports: one for each of PORTS but `rest`.
    """
    return {
        "PERSISTENCE_DATA_PATH": str(data),
        "DEFAULT_VECTORIZER_MODULE": "none",
        "ENABLE_API_BASED_MODULES": "false",
        "CLUSTER_HOSTNAME": "node1",
        "CLUSTER_BIND_ADDR": HOST,
        "CLUSTER_ADVERTISE_ADDR": HOST,
        "CLUSTER_GOSSIP_BIND_PORT": str(ports["gossip"]),
        "CLUSTER_DATA_BIND_PORT": str(ports["data"]),
        "CLUSTER_BASIC_AUTH_USERNAME": "opd",
        "CLUSTER_BASIC_AUTH_PASSWORD": api_key,
        "RAFT_PORT": str(ports["raft"]),
        "RAFT_INTERNAL_RPC_PORT": str(ports["raft_rpc"]),
        "RAFT_BOOTSTRAP_EXPECT": "1",
        "RAFT_BOOTSTRAP_TIMEOUT": "90",
        "RAFT_JOIN": "node1",
        "GRPC_PORT": str(ports["grpc"]),
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
        "AUTHENTICATION_APIKEY_ENABLED": "true",
        "AUTHENTICATION_APIKEY_ALLOWED_KEYS": api_key,
        "AUTHENTICATION_APIKEY_USERS": "opd",
        "AUTHORIZATION_ADMINLIST_ENABLED": "true",
        "AUTHORIZATION_ADMINLIST_USERS": "opd",
        "DISABLE_TELEMETRY": "true",
        "GO_PROFILING_DISABLE": "true",
        "LOG_LEVEL": "error",
    }
