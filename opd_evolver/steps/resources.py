"""What steps open: policies, environments, the live memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from opd_evolver.environments import registry
from opd_evolver.errors import SetupError
from opd_evolver.memory.store import Memory
from opd_evolver.params import Params
from opd_evolver.records import Split, Task
from opd_evolver.settings import load_settings
from opd_evolver.step import Job


@lru_cache(maxsize=3)
def _policy(path: str, params_json: str, version: str, device: str) -> Any:
    from opd_evolver.params import PolicyParams
    from opd_evolver.policy.registry import open_policy

    return open_policy(PolicyParams.model_validate_json(params_json), Path(path), device, version=version)


def policy(job: Job, name: str = "policy") -> Any:
    """The policy of an input; kept open, since the steps of a round use the same two or three.

    Its version in ledger rows is the digest of its weights.
    """
    params = job.typed_params().policy
    version = job.input_digests[name][:16]
    return _policy(str(job.path(name)), params.model_dump_json(), version, load_settings().device)


def live_memory(job: Job, *, read_only: bool) -> Memory:
    return Memory.open(job.path("live"), job.typed_params().memory, read_only=read_only)


def tasks_of(params: Params, split: Split, n: int, *, skip: int = 0) -> dict[str, Sequence[Task]]:
    """Tasks `skip` … `skip + n` of a split in every domain (prefix property: always the same ones).

    Raises:
        SetupError: an environment has fewer; rounds are planned with as many as `fast.tasks_per_domain` each.
    """
    found: dict[str, Sequence[Task]] = {}
    for domain in params.environments.domains:
        env = registry.load(domain, params.environments.levels, params.environments.headroom)
        try:
            found[domain] = env.tasks(split, skip + n)[skip:]
        finally:
            env.close()
        if len(found[domain]) < n:
            raise SetupError(
                f"{domain} has {len(found[domain])} of {n} tasks of {split} for round {skip // n + 1}",
                f"{skip + n} in all: a round's tasks are never those of another",
                "lower fast.tasks_per_domain or rounds",
            )
    return found
