"""From parameters to a policy; the caller does not know which one it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opd_evolver.params import PolicyParams
from opd_evolver.policy.scripted import ScriptedPolicy

if TYPE_CHECKING:
    from opd_evolver.policy.local import LocalPolicy


def open_policy(
    params: PolicyParams, path: Path | None = None, device: str = "cpu", *, version: str | None = None
) -> LocalPolicy | ScriptedPolicy:
    """The policy that `params` name.

    Args:
        params: backend, base path, dtype, threads, prompt limit.
        path: weights to serve instead of the base (a round's policy).
        device: site setting.
        version: name of these weights in ledger rows; None is their digest.

    Raises:
        SetupError, CorruptionError: see `LocalPolicy.load`.
    """
    if params.backend == "scripted":
        return ScriptedPolicy()
    from opd_evolver.policy.local import LocalPolicy

    return LocalPolicy.load(
        path or params.path,
        device=device,
        dtype=params.dtype,
        threads=params.threads,
        max_prompt_tokens=params.max_prompt_tokens,
        version=version,
    )
