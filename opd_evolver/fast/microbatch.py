"""A micro-batch as one durable file, `mb-0007.jsonl`: what a worker hands to the committer.

First line: the key of all that decided the micro-batch and the digest of its body. Then one
line per episode, without telemetry; the last line holds the seconds, which no digest covers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from opd_evolver.durable import write_text
from opd_evolver.errors import SchemaError, SetupError
from opd_evolver.fast.wave import Wave
from opd_evolver.records import SCHEMA_VERSION, Episode, canonical_json, digest_of
from opd_evolver.rollout.runner import Runner
from opd_evolver.rollout.settings import EpisodeSettings


@dataclass(frozen=True)
class MicrobatchResult:
    """A finished micro-batch of a wave, its episodes in rollout order."""

    index: int
    episodes: tuple[Episode, ...]


def file_name(index: int) -> str:
    return f"mb-{index:04d}.jsonl"


class Inputs(NamedTuple):
    """What a wave's rollouts read beside their tasks.

    Attributes:
        settings: abilities, budgets, sampling.
        policy_version: who replies.
        memory_state: names the memory's state when the wave began, see `committer.memory_state`.
    """

    settings: EpisodeSettings
    policy_version: str
    memory_state: str


def key_of(wave: Wave, index: int, inputs: Inputs) -> str:
    """Digest of all that decides a micro-batch: rollouts with their tasks, settings, policy and memory."""
    rollouts = (canonical_json(rollout) for rollout in wave.microbatches[index])
    head = (str(SCHEMA_VERSION), canonical_json(inputs.settings), inputs.policy_version, inputs.memory_state)
    return digest_of([*head, *rollouts])


def write(path: Path, key: str, episodes: Sequence[Episode]) -> None:
    """Write the file durably: after a crash it is whole or absent."""
    body = [canonical_json(episode.model_dump(mode="json", exclude={"seconds"})) for episode in episodes]
    head = {"schema_version": SCHEMA_VERSION, "kind": "microbatch", "key": key, "digest": digest_of(body)}
    tail = {"seconds": [round(episode.seconds, 4) for episode in episodes]}
    write_text(path, "\n".join([canonical_json(head), *body, canonical_json(tail)]) + "\n")


def read(path: Path, key: str) -> tuple[Episode, ...] | None:
    """Episodes of a valid file; None when it is missing, torn or was made from other inputs.

    Raises:
        SchemaError: written by a newer version.
        SetupError: not readable.
    """
    if not path.exists():
        return None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        head, body, tail = json.loads(lines[0]), lines[1:-2], json.loads(lines[-2])
        if head["schema_version"] > SCHEMA_VERSION:
            raise SchemaError(
                f"{path} has schema {head['schema_version']}",
                f"schema {SCHEMA_VERSION} or older",
                "install the newer opd-evolver",
            )
        if head["key"] != key or head["digest"] != digest_of(body) or len(tail["seconds"]) != len(body):
            return None
        seconds = zip(body, tail["seconds"], strict=True)
        return tuple(
            Episode.model_validate_json(line).model_copy(update={"seconds": float(taken)}) for line, taken in seconds
        )
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}", "a readable file", f"chmod u+r {path}") from None
    except (ValueError, KeyError, IndexError, TypeError, ValidationError):
        return None  # a torn or foreign file is no result: its micro-batch runs again


def run_microbatches(
    wave: Wave,
    indices: Iterable[int],
    runner: Runner,
    *,
    memory_state: str,
    folder: Path | None = None,
    done: Callable[[int, int], None] | None = None,
) -> list[MicrobatchResult]:
    """Play the given micro-batches, each written as its own file before the next begins.

    Args:
        wave: from `plan_epoch`.
        indices: which micro-batches, e.g. `shard_indices(wave, 0, 2)`.
        runner: policy, environments, memory and settings; the memory must stay as it is meanwhile.
        memory_state: names the memory's state, see `committer.memory_state`.
        folder: where the files go; a valid one that is there is not run again. None keeps all in memory.
        done: told (finished, of how many) after each micro-batch.

    Raises:
        OutageError: an engine stayed down; finished micro-batches are kept.
    """
    inputs = Inputs(runner.settings, runner.policy.version, memory_state)
    wanted = list(indices)
    results = []
    for number, index in enumerate(wanted, start=1):
        rollouts = wave.microbatches[index]
        key = key_of(wave, index, inputs)
        path = None if folder is None else folder / file_name(index)
        episodes = None if path is None else read(path, key)
        if episodes is None:
            episodes = tuple(runner.run(rollouts, len(rollouts)))
            if path is not None:
                write(path, key, episodes)
        results.append(MicrobatchResult(index, episodes))
        if done is not None:
            done(number, len(wanted))
    return results


def check_complete(wave: Wave, results: Sequence[MicrobatchResult]) -> list[Episode]:
    """The wave's episodes in task order.

    Raises:
        SetupError: the results are not this wave's, one by one.
    """
    episodes = [episode for result in sorted(results, key=lambda one: one.index) for episode in result.episodes]
    expected = [rollout.rollout_id for rollout in wave.rollouts]
    if [episode.row.rollout_id for episode in episodes] != expected:
        raise SetupError(
            f"wave {wave.name} was given {len(episodes)} episodes",
            f"its {len(expected)} rollouts, each once",
            "opd resume (runs the missing micro-batches)",
        )
    return episodes
