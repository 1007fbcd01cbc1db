"""A project with one finished round, made by the real steps: a scripted agent plays, nothing is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import yaml
from benchmark_policies import reader
from checkpoints import tiny_qwen3
from rollout_world import agent

from opd_evolver import lineage, step
from opd_evolver.durable import write_text
from opd_evolver.lineage import Run
from opd_evolver.params import Params, load_preset, merge
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.policy.weights import weights_digest
from opd_evolver.records import canonical_json
from opd_evolver.steps import plan, prepare, publish, resources, track

NAME = "done"
SMALL = {
    "rounds": 1,
    # What the scripted agent speaks of.
    "environments.levels": ["tip"],
    "fast.tasks_per_domain": 4,
    "fast.rollouts_per_task": 2,
    "fast.wave_tasks": 4,
    "fast.maintain_every_tasks": 4,
    "fast.maintain_max_steps": 2,
    "benchmark.test_tasks_per_domain": 3,
    "benchmark.val_tasks_per_domain": 3,
    "benchmark.probe_tasks_per_domain": 3,
    "benchmark.bootstrap_samples": 20,
}


def params_of(policy: Path) -> Params:
    """Parameters of a tiny run of the policy in a folder."""
    return merge(load_preset("micro"), {**SMALL, "policy.path": str(policy)}, "test")


@contextmanager
def scripted() -> Iterator[None]:
    """Steps get the scripted agent, and rounds are tracked nowhere."""

    def policy(job: step.Job, name: str = "policy") -> ScriptedPolicy:
        version = job.input_digests[name][:16]
        return reader(version) if job.step == "benchmark" else ScriptedPolicy(agent, version)

    with (
        patch.object(resources, "policy", policy),
        patch.object(track, "round_", lambda run, number: None),
        patch.object(track, "missing", lambda run: None),
    ):
        yield


def play_round(run: Run, round_: int) -> None:
    """Every step of a round but contracts and training; the new policy is a copy of the old one."""
    step.run(plan.begin_job(run, round_))
    for wave in range(plan.n_waves(run)):
        for job in plan.shard_jobs(run, round_, wave):
            step.run(job)
        step.run(plan.barrier_job(run, round_, wave))
    snapshot = step.run(plan.snapshot_job(run, round_))
    memory = snapshot.digests["entries"] + snapshot.digests["ledger"]
    examples = step.run(plan.examples_job(run, round_, memory))
    distil = plan.distil_job(run, round_, examples.digests["examples"])
    shutil.copytree(distil.path("policy"), distil.path("target"))
    weights = weights_digest(distil.path("target"))
    write_text(
        distil.out_path() / "result.json", canonical_json(step.result(distil, digests={"weights": weights})) + "\n"
    )
    measured = step.run(plan.benchmark_job(run, round_, memory, weights))
    step.run(plan.gate_job(run, round_, measured.digests["benchmark"]))
    publish.finish_round(run, round_)


def stand_in_flow(project: Path, body: str = "pass") -> None:
    """A project's flow that runs `body` where the rounds would be played."""
    (project / "flows").mkdir(exist_ok=True)
    (project / "flows" / "__init__.py").touch()
    (project / "flows" / "coevolve.py").touch()
    (project / "flows" / "__main__.py").write_text(f"import time, pathlib\n{body}\n")


def build(root: Path, policy: Path) -> Run:
    """A project's folder with params.yaml and the finished run `done`."""
    params = params_of(policy)
    root.mkdir(parents=True, exist_ok=True)
    tree = params.model_dump(mode="json")
    (root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    stand_in_flow(root)
    with scripted():
        run = lineage.open_or_create(root, NAME, params)
        prepare.base(run)
        step.run(plan.benchmark_job(run, 0, "", ""))
        publish.round_zero(run)
        play_round(run, 1)
        publish.versions(run)
    return run


def policy_folder(root: Path) -> Path:
    return tiny_qwen3(root / "policy")
