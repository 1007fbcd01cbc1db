"""The training's state on disk: one file, replaced as a whole, so a kill leaves the last or the one before."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from opd_evolver.durable import write_bytes
from opd_evolver.environments import conventions as cv
from opd_evolver.errors import CorruptionError
from opd_evolver.records import canonical_json, digest_of
from opd_evolver.seed.data import Encoder, batch
from opd_evolver.seed.muon import Optimisers
from opd_evolver.seed.settings import SeedSettings

N_FINGERPRINT = 64


def fingerprint(settings: SeedSettings, encoder: Encoder, domains: Sequence[cv.Procedural]) -> str:
    """Digest of the settings and of the first data they give: a state made by other code is not gone on with."""
    lines = [canonical_json(settings)]
    for share in (0.0, 1.0):
        for step in (0, settings.all_steps - 1):
            key, worded = (settings.seed, "fingerprint"), settings.worded(step)
            drawn = batch(encoder, domains, N_FINGERPRINT, drill_share=share, key=key, worded=worded)
            lines += [canonical_json([one.token_ids, one.scored]) for one in drawn]
    return digest_of(lines)


def save(path: Path, step: int, model: Any, optimisers: Optimisers, curve: dict[str, Any]) -> None:
    """Write the state after `step` steps, durably."""
    raw = io.BytesIO()
    torch.save({"step": step, "model": model.state_dict(), "optimisers": optimisers.state_dict(), "curve": curve}, raw)
    write_bytes(path, raw.getvalue())


def load(path: Path, model: Any, optimisers: Optimisers) -> tuple[int, dict[str, Any]]:
    """Put a saved state into model and optimisers; how many steps it has, and its curve's state.

    Raises:
        CorruptionError: the file cannot be read; delete it to begin anew.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimisers.load_state_dict(state["optimisers"])
        return int(state["step"]), dict(state["curve"])
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise CorruptionError(
            f"cannot read the training state {path}: {str(error).splitlines()[0][:200]}",
            "a state this version wrote",
            f"rm {path}, then begin again",
        ) from error
