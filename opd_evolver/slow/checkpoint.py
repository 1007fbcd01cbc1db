"""Training checkpoints: weights and optimiser state as safetensors (no pickles), each folder swapped in whole.

A `kill -9` leaves the last whole checkpoint; training resumed from it ends with the same bytes as
an uninterrupted one, since every draw is counter-based and the state here is all there is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opd_evolver.durable import new_folder, sync_folder
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.records import SCHEMA_VERSION, canonical_json

WEIGHTS, OPTIMISER, STATE = "weights.safetensors", "optimiser.safetensors", "state.json"
PREFIX = "step-"
Named = Sequence[tuple[str, torch.nn.Parameter]]


class Progress(NamedTuple):
    """How far a training is: steps done, metrics logged, tokens sampled and processed so far."""

    step: int
    metrics: list[dict[str, Any]]
    tokens: Mapping[str, int]


def folders(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in root.glob(f"{PREFIX}*") if path.is_dir()) if root.is_dir() else []


def save(root: Path, identity: str, progress: Progress, trained: Named, optimiser: torch.optim.Optimizer) -> None:
    """Write a checkpoint and drop older ones.

    Args:
        root: folder of checkpoints.
        identity: digest of everything that decides the training.
        progress: steps done so far, and metrics.
        trained: the trainable parameters.
        optimiser: AdamW over them.
    """
    from safetensors.torch import save_file

    state = {
        f"{name}/{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for name, weight in trained
        for key, value in sorted(optimiser.state.get(weight, {}).items())
    }
    with new_folder(root / f"{PREFIX}{progress.step:06d}") as folder:
        save_file({name: weight.detach().cpu().contiguous() for name, weight in trained}, folder / WEIGHTS)
        save_file(state, folder / OPTIMISER)
        tree = {
            "schema_version": SCHEMA_VERSION,
            "identity": identity,
            "step": progress.step,
            "metrics": progress.metrics,
            "tokens": progress.tokens,
        }
        (folder / STATE).write_text(canonical_json(tree), encoding="utf-8")
    for old in folders(root)[:-1]:
        shutil.rmtree(old)
    sync_folder(root)


def restore(root: Path, identity: str, trained: Named, optimiser: torch.optim.Optimizer) -> Progress:
    """Load the newest checkpoint into parameters and optimiser; a start from nothing when there is none.

    Raises:
        SetupError: it belongs to a training with other parameters or inputs.
        CorruptionError: it does not hold what it should.
    """
    found = folders(root)
    if not found:
        return Progress(0, [], {})
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = found[-1]
    mend = f"rm -r {root}, then: opd resume"
    try:
        tree = json.loads((folder / STATE).read_text(encoding="utf-8"))
        weights, state = load_file(folder / WEIGHTS), load_file(folder / OPTIMISER)
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptionError(f"cannot read {folder}: {error}", "a whole checkpoint", mend) from None
    if tree.get("identity") != identity:
        raise SetupError(f"{folder} belongs to a training with other parameters or inputs", "its own ones", mend)
    if set(weights) != {name for name, _ in trained}:
        raise CorruptionError(f"{folder} holds other tensors than are trained", "the same model", mend)
    for name, weight in trained:
        with torch.no_grad():
            weight.copy_(weights[name])
        own = {key.rpartition("/")[2]: value for key, value in state.items() if key.rpartition("/")[0] == name}
        # AdamW keeps `step` on the CPU, the moments beside their parameter.
        optimiser.state[weight] = {key: value if key == "step" else value.to(weight) for key, value in own.items()}
    # A checkpoint from before tokens were kept goes on, and counts from there.
    return Progress(int(tree["step"]), list(tree["metrics"]), dict(tree.get("tokens", {})))
