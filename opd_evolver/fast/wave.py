"""An epoch as a sequence of waves. All of a wave reads the memory as it stood when the wave began.

A wave is cut into micro-batches of fixed size and order; shards, resume and retries move whole
micro-batches, so the number of workers changes nothing. W = 1 is the streaming protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from opd_evolver.errors import SetupError
from opd_evolver.params import Params
from opd_evolver.records import Task
from opd_evolver.rollout.seeds import shuffled
from opd_evolver.rollout.settings import Rollout


@dataclass(frozen=True)
class Wave:
    """W tasks with K rollouts each.

    Attributes:
        round: r.
        index: 0-based place in the epoch.
        n_tasks: W; fewer in the last wave.
        microbatches: the rollouts in task order, cut into fixed batches.
        maintain_after: whether maintenance is due at this wave's barrier.
    """

    round: int
    index: int
    n_tasks: int
    microbatches: tuple[tuple[Rollout, ...], ...]
    maintain_after: bool = False

    @property
    def name(self) -> str:
        """Start of its rollout ids, e.g. `r003/w02`."""
        return f"r{self.round:03d}/w{self.index:02d}"

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        return tuple(rollout for batch in self.microbatches for rollout in batch)


def shard_indices(wave: Wave, shard: int, n_shards: int) -> range:
    """The micro-batches of one shard: those whose index is `shard` modulo `n_shards`.

    Raises:
        SetupError: no such shard.
    """
    if not 0 <= shard < n_shards:
        raise SetupError(
            f"shard {shard} of {n_shards}", f"a shard from 0 to {n_shards - 1}", "set flows.shards to how many run"
        )
    return range(shard, len(wave.microbatches), n_shards)


def interleaved(tasks_by_domain: Mapping[str, Sequence[Task]], seed: int, round: int) -> list[Task]:
    """All tasks in a fixed shuffled order, one of each domain in turn. Never looks at families."""
    queues = [
        shuffled(tasks_by_domain[domain], lambda task: task.task_id, seed, "epoch", round, domain)
        for domain in sorted(tasks_by_domain)
    ]
    return [task for turn in zip_longest(*queues) for task in turn if task is not None]


def cut_waves(
    tasks: Sequence[Task],
    *,
    round: int,
    wave_tasks: int,
    rollouts_per_task: int,
    microbatch_rollouts: int,
    maintain_every_tasks: int | None = None,
    prefix: str | None = None,
) -> list[Wave]:
    """Waves over tasks in the given order (a streaming benchmark gives its test order and W = 1).

    Args:
        tasks: in order.
        round: r; stands in rows and, unless `prefix` is given, in rollout ids.
        wave_tasks: W.
        rollouts_per_task: K.
        microbatch_rollouts: episodes in lock-step.
        maintain_every_tasks: Q; None for no maintenance. Tasks are counted on from the rounds before.
        prefix: start of every rollout id in place of `r003`.

    Raises:
        SetupError: two tasks share an id.
    """
    twice = [task_id for task_id, n in Counter(task.task_id for task in tasks).items() if n > 1]
    if twice:
        raise SetupError(
            f"{len(twice)} task ids occur twice, e.g. {twice[0]}",
            "task ids that are unique over all domains",
            "let the environment put its domain into task_id; `opd check-env` shows it",
        )
    blocks = [tasks[at : at + wave_tasks] for at in range(0, len(tasks), wave_tasks)]
    due = _maintenance([len(block) for block in blocks], round, maintain_every_tasks)
    waves = []
    for index, (block, maintain_after) in enumerate(zip(blocks, due, strict=True)):
        start = f"{prefix or f'r{round:03d}'}/w{index:02d}"
        rollouts = tuple(
            Rollout(rollout_id=f"{start}/{task.task_id}/k{k}", round=round, wave=index, task=task)
            for task in block
            for k in range(1, rollouts_per_task + 1)
        )
        batches = tuple(rollouts[at : at + microbatch_rollouts] for at in range(0, len(rollouts), microbatch_rollouts))
        waves.append(Wave(round, index, len(block), batches, maintain_after))
    return waves


def _maintenance(wave_sizes: Sequence[int], round: int, every: int | None) -> list[bool]:
    """At which barriers of this round maintenance is due: the first one after Q tasks.

    Counted on over rounds, so that an epoch shorter than Q is maintained too; a function of the
    plan alone, so that a replayed or restarted round maintains at the same barriers.
    """
    due: list[bool] = []
    since = 0
    for _ in range(max(1, round)):
        due = []
        for size in wave_sizes:
            since += size
            due.append(every is not None and since >= every)
            since = 0 if due[-1] else since
    return due


def plan_epoch(params: Params, round: int, tasks_by_domain: Mapping[str, Sequence[Task]]) -> list[Wave]:
    """The waves of round r's epoch: the same for every number of workers.

    Args:
        params: `seed` and `fast`.
        round: r, from 1.
        tasks_by_domain: the training tasks of each domain.

    Paper: one fast-loop epoch per round, K rollouts a task, maintenance every Q tasks.
    Differs: tasks run in waves; the memory grows at barriers.
    """
    fast = params.fast
    return cut_waves(
        interleaved(tasks_by_domain, params.seed, round),
        round=round,
        wave_tasks=fast.wave_tasks,
        rollouts_per_task=fast.rollouts_per_task,
        microbatch_rollouts=fast.microbatch_rollouts,
        maintain_every_tasks=fast.maintain_every_tasks if fast.maintain_max_steps > 0 else None,
    )
