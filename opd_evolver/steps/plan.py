"""Which jobs make a round, in order. The flows run them; nothing here runs anything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from opd_evolver.lineage import Run, read_json
from opd_evolver.memory import edits
from opd_evolver.records import Record
from opd_evolver.step import Job


class Champion(Record):
    """The policy and memory a round starts from: those of `round` (0: base policy, empty memory)."""

    round: int
    policy: str
    policy_digest: str
    memory: str | None
    memory_digest: str


EMPTY = "empty"
# Names of what `benchmark/measure.py` measures apart, here by the time they take.
BASE_PARTS = ("retention", "alone")
ROUND_PARTS = (
    "retention",
    "with memory",
    "alone",
    "base with memory",
    "retention for the gate",
    "retention of the champion",
    "validation",
    "validation of the champion",
)


def base_policy(run: Run) -> tuple[str, str]:
    """Path (from the artifact root on) and weights digest of the policy the run began with, once in base.json."""
    tree = read_json(run.owner(0).run / "base.json")
    return str(tree["policy"]), str(tree["policy_digest"])


def under_base(run: Run) -> str | None:
    """Digest of what lies under a base policy that is an adapter; None of whole models and of runs from before."""
    found = read_json(run.owner(0).run / "base.json").get("under_adapter")
    return None if found is None else str(found)


def champion(run: Run, round_: int) -> Champion:
    """The champion when `round_` begins: what the gate left after the round before."""
    held = run.held(round_)
    if held == 0:
        path, digest = base_policy(run)
        return Champion(round=0, policy=path, policy_digest=digest, memory=None, memory_digest=EMPTY)
    summary = run.summary(held)
    if summary is None:
        raise ValueError(f"round {held} is champion but has no summary")
    folder = run.owner(held).version(held).relative_to(run.root)
    digests = summary["digests"]
    return Champion(
        round=held,
        policy=str(folder / "policy"),
        policy_digest=digests["weights"],
        memory=str(folder / "memory"),
        memory_digest=digests["entries"] + digests["ledger"],
    )


def current(run: Run) -> Champion:
    """What the next round would start from."""
    return champion(run, len(run.finished_rounds()) + 1)


def edit_files(run: Run, round_: int) -> list[Path]:
    """Where the edits lie that enter `round_`: its own, and those of the rounds before it that the gate refused."""
    return list(run.edit_files(run.held(round_), round_).values())


def next_unbegun(run: Run) -> int:
    """The first round whose live memory does not exist yet: where an edit by hand still can enter."""
    round_ = len(run.finished_rounds()) + 1
    return round_ + 1 if run.paths.live(round_).exists() else round_


def refusals(run: Run, round_: int) -> int:
    """Consecutive refusals just before `round_`."""
    count = 0
    while (summary := run.summary(round_ - 1 - count)) and round_ - 1 - count > 0 and not summary["gate"]["promoted"]:
        count += 1
    return count


def n_waves(run: Run) -> int:
    fast = run.params.fast
    return math.ceil(fast.tasks_per_domain * len(run.params.environments.domains) / fast.wave_tasks)


def _job(run: Run, step: str, round_: int, name: str, **fields: Any) -> Job:
    out = run.paths.step(round_, name).relative_to(run.root)
    return Job(
        step=step,
        lineage=run.lineage,
        round=round_,
        root=str(run.root),
        out=str(out),
        params=run.params.model_dump(mode="json"),
        **fields,
    )


def _relative(run: Run, path: Path) -> str:
    return str(path.relative_to(run.root))


def _start(run: Run, round_: int) -> dict[str, Any]:
    """What every step of the fast loop reads: the champion and the round's live memory."""
    champ = champion(run, round_)
    inputs = {"policy": champ.policy, "live": _relative(run, run.paths.live(round_))}
    if champ.memory is not None:
        inputs["start"] = champ.memory
    digests = {"policy": champ.policy_digest, "memory": champ.memory_digest}
    waiting = edit_files(run, round_)
    if (edited := edits.digest(*waiting)) is not None:
        inputs["edits"], digests["edits"] = _relative(run, waiting[-1]), edited
    return {"inputs": inputs, "input_digests": digests}


def _reembeds(run: Run) -> dict[str, Any]:
    """What a step that restores a memory must know: which embedders this lineage has left behind, if any."""
    return {"reembeds": list(run.reembeds)} if run.reembeds else {}


def begin_job(run: Run, round_: int) -> Job:
    """Open the round's live memory before any shard reads it."""
    return _job(run, "begin", round_, "begin", options=_reembeds(run), **_start(run, round_))


def shard_jobs(run: Run, round_: int, wave: int) -> list[Job]:
    """The shards of a wave; how many changes nothing but the time they take."""
    n = run.params.flows.shards
    return [
        _job(
            run,
            "fast_shard",
            round_,
            f"wave-{wave:02d}/shard-{shard}-of-{n}",
            options={"wave": wave, "shard": shard, "n_shards": n},
            **_start(run, round_),
        )
        for shard in range(n)
    ]


def barrier_job(run: Run, round_: int, wave: int) -> Job:
    """The one committer at the end of a wave, and maintenance when it is due."""
    return _job(run, "barrier", round_, f"wave-{wave:02d}/barrier", options={"wave": wave}, **_start(run, round_))


def snapshot_job(run: Run, round_: int) -> Job:
    fields = _start(run, round_)
    fields["inputs"]["snapshot"] = _relative(run, run.paths.version(round_) / "memory")
    return _job(run, "snapshot", round_, "snapshot", options={"n_waves": n_waves(run)}, **fields)


def examples_job(run: Run, round_: int, memory_digest: str) -> Job:
    champ = champion(run, round_)
    return _job(
        run,
        "examples",
        round_,
        "examples",
        inputs={"policy": champ.policy, "live": _relative(run, run.paths.live(round_))},
        input_digests={"policy": champ.policy_digest, "memory": memory_digest},
    )


def contracts_job(run: Run, round_: int, memory_digest: str, examples_digest: str) -> Job:
    return _job(
        run,
        "contracts",
        round_,
        "contracts",
        inputs={
            "memory": _relative(run, run.paths.version(round_) / "memory"),
            "examples": _relative(run, run.paths.step(round_, "examples")),
        },
        input_digests={"memory": memory_digest, "examples": examples_digest},
    )


def distil_job(run: Run, round_: int, examples_digest: str) -> Job:
    champ = champion(run, round_)
    base_path, base_digest = base_policy(run)
    return _job(
        run,
        "distil",
        round_,
        "distil",
        inputs={
            "policy": champ.policy,
            "base": base_path,
            "examples": _relative(run, run.paths.step(round_, "examples")),
            "target": _relative(run, run.paths.version(round_) / "policy"),
        },
        input_digests={"policy": champ.policy_digest, "base": base_digest, "examples": examples_digest},
    )


def benchmark_job(run: Run, round_: int, memory_digest: str, policy_digest: str) -> Job:
    """Round 0 measures the base policy alone."""
    base_path, base_digest = base_policy(run)
    inputs = {"base": base_path, "columns": _relative(run, run.paths.run / "columns")}
    digests = {"base": base_digest}
    if round_ > 0:
        champ = champion(run, round_)
        inputs |= {
            "policy": _relative(run, run.paths.version(round_) / "policy"),
            "memory": _relative(run, run.paths.version(round_) / "memory"),
            "champion_policy": champ.policy,
        }
        digests |= {
            "policy": policy_digest,
            "memory": memory_digest,
            "champion_policy": champ.policy_digest,
            "champion_memory": champ.memory_digest,
        }
        if champ.memory is not None:
            inputs["champion_memory"] = champ.memory
    options = _reembeds(run) if round_ > 0 else {}
    return _job(run, "benchmark", round_, "benchmark", inputs=inputs, input_digests=digests, options=options)


def benchmark_part_jobs(run: Run, round_: int, memory_digest: str, policy_digest: str) -> list[Job]:
    """The parts of a round's benchmark, those that take longest first: for processes that share them."""
    whole = benchmark_job(run, round_, memory_digest, policy_digest)
    return [
        whole.model_copy(
            update={
                "step": "benchmark_part",
                "out": f"{whole.out}-parts/{part.replace(' ', '-')}",
                "options": {**whole.options, "part": part},
            }
        )
        for part in (ROUND_PARTS if round_ > 0 else BASE_PARTS)
    ]


def gate_job(run: Run, round_: int, benchmark_digest: str) -> Job:
    return _job(
        run,
        "gate",
        round_,
        "gate",
        inputs={"benchmark": _relative(run, run.paths.step(round_, "benchmark"))},
        input_digests={"benchmark": benchmark_digest},
        options={"refusals_before": refusals(run, round_)},
    )
