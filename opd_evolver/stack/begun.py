"""A stack on its way up: servers, pools, workers, deployments, in that order."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from opd_evolver.console import say
from opd_evolver.durable import explained, write_text
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.settings import Settings
from opd_evolver.stack import services, weaviate
from opd_evolver.stack.services import HOST, Stack

# A parent that waits on its own one-slot pool never wakes: steps run in a pool of their own.
POOLS = {"control": None, "gpu": 1}
# What a run can do without: MLflow's server only shows what is in its database, and the pool `gpu`
# serves `flows.placement = deployment` alone.
EXTRAS = ("mlflow", "worker-gpu")
# Only where a run's memory is hosted on a server.
ON_REQUEST = ("weaviate",)
TOML_HEAD = "# written by `opd up` for this folder only; `opd down` removes it"
DEPLOY_TIMEOUT_S = 180.0


class Begun:
    """A stack on its way up. It is recorded after every process, so that `opd down` finds each one."""

    def __init__(self, project: Path, settings: Settings, stack: Stack, extras: tuple[str, ...]) -> None:
        self.project, self.settings, self.stack = project, settings, stack
        self._mlflow = "mlflow" in extras and not settings.mlflow_tracking_uri
        # Asked for before anything starts, so that a busy port costs nobody a minute.
        new_port = self._mlflow and not stack.serves("mlflow")
        self._mlflow_port = services.choose_port(project, "mlflow", settings.mlflow_port) if new_port else 0
        self._weaviate = "weaviate" in extras and not settings.weaviate_url
        if self._weaviate and not stack.serves("weaviate"):
            weaviate.binary()
        self._pools_served = [pool for pool in POOLS if f"worker-{pool}" not in EXTRAS or f"worker-{pool}" in extras]
        self.api = f"http://{HOST}:{stack.prefect_port}/api"
        self.env = services.environment(project, stack.mark, self.api)

    def _record(self, **changes: Any) -> None:
        self.stack = self.stack.model_copy(update=changes)
        services.write(self.project, self.stack)

    def _start(self, name: str, *arguments: str) -> None:
        if self.stack.serves(name):
            return
        say(f"local stack: starting {name}")
        service = services.spawn(self.project, name, [sys.executable, "-m", *arguments], self.env)
        self._record(services={**self.stack.services, name: service})

    def servers(self) -> None:
        """The Prefect server, and then MLflow's while the rest is set up."""
        port = str(self.stack.prefect_port)
        self._start("prefect", "prefect", "--no-prompt", "server", "start", "--host", HOST, "--port", port)
        home = self.project / ".opd" / "prefect"
        write_text(self.project / "prefect.toml", f'{TOML_HEAD}\nhome = "{home}"\n\n[api]\nurl = "{self.api}"\n')
        health = f"{self.api}/health"
        services.wait("prefect", self.stack.services["prefect"], lambda: services.request(health) is True)
        if self._mlflow and not self.stack.serves("mlflow"):
            self._start_mlflow()

    def _start_mlflow(self) -> None:
        """On the database that a run writes to without a server."""
        port = self._mlflow_port
        root = self.settings.artifact_root.resolve()
        store = ("--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}")
        files = ("--artifacts-destination", str(root / "mlartifacts"))
        self._start("mlflow", "mlflow", "server", *store, *files, "--host", HOST, "--port", str(port), "--workers", "1")
        self._record(mlflow_port=port)

    def memory(self) -> None:
        """The memory's server, where one is asked for; it starts while Prefect does."""
        if not self._weaviate or self.stack.serves("weaviate"):
            return
        say("local stack: starting weaviate")
        service, port = weaviate.start(self.project, self.env)
        self._record(services={**self.stack.services, "weaviate": service}, weaviate_port=port)

    def workers(self) -> None:
        """The pools, and one process worker for each that is served."""
        self._pools()
        for pool in self._pools_served:
            command = ("worker", "start", "--pool", pool, "--type", "process", "--name", f"opd-{pool}")
            self._start(f"worker-{pool}", "prefect", "--no-prompt", *command)

    def _pools(self) -> None:
        missing = [pool for pool in POOLS if self._ask(f"work_pools/{pool}") == {"status": 404}]
        if not missing:
            return
        known = self._ask("collections/views/aggregate-worker-metadata")
        template = known["prefect"]["process"]["default_base_job_configuration"]
        for pool in missing:
            body = {"name": pool, "type": "process", "base_job_template": template, "concurrency_limit": POOLS[pool]}
            made = self._ask("work_pools/", body)
            # 409: made by a request whose answer came too late
            if made.get("name") != pool and made != {"status": 409}:
                raise OutageError(f"the work pool {pool} was not made: {made}", "a work pool", "opd down; opd up")

    def _ask(self, path: str, tree: object = None) -> dict[str, Any]:
        """A request that is repeated until the server answers; on a busy machine it may take its time."""
        answer: Any = None

        def answered() -> bool:
            nonlocal answer
            answer = services.request(f"{self.api}/{path}", tree, timeout_s=30)
            return isinstance(answer, dict)

        services.wait("prefect", self.stack.services["prefect"], answered)
        return dict(answer)

    def deploy(self) -> None:
        """`prefect deploy --all`, again only when prefect.yaml has changed."""
        digest = hashlib.sha256((self.project / "prefect.yaml").read_bytes()).hexdigest()
        if self.stack.deployed == digest:
            return
        say("local stack: deploying the flows of prefect.yaml")
        log = self.project / ".opd" / "logs" / "deploy.log"
        with explained(log), log.open("wb") as sink:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
                    cwd=self.project,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    timeout=DEPLOY_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise OutageError(f"deploying took over {DEPLOY_TIMEOUT_S:.0f} s", "it to end", f"see {log}") from None
        if done.returncode != 0:
            raise SetupError(
                f"prefect deploy failed: {services.last_line(log)}", "flows that can be deployed", f"see {log}"
            )
        self._record(deployed=digest)

    def settle(self) -> None:
        """MLflow answers and each pool's worker polls."""
        if self._mlflow:
            url = f"http://{HOST}:{self.stack.mlflow_port}/health"
            services.wait("mlflow", self.stack.services["mlflow"], lambda: services.request(url) == "OK")
        if self._weaviate:
            ready = f"http://{HOST}:{self.stack.weaviate_port}/v1/.well-known/ready"
            services.wait("weaviate", self.stack.services["weaviate"], lambda: services.request(ready) == {})
        for pool in self._pools_served:
            services.wait(f"worker-{pool}", self.stack.services[f"worker-{pool}"], partial(self._polls, pool))

    def _polls(self, pool: str) -> bool:
        found = services.request(f"{self.api}/work_pools/{pool}/workers/filter", {})
        return isinstance(found, list) and any(worker.get("status") == "ONLINE" for worker in found)
