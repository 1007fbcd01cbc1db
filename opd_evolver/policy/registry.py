"""From parameters to a policy; the caller does not know which one it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opd_evolver.errors import SetupError
from opd_evolver.params import PolicyParams
from opd_evolver.policy.scripted import ScriptedPolicy

if TYPE_CHECKING:
    from opd_evolver.policy.endpoint import EndpointPolicy
    from opd_evolver.policy.local import LocalPolicy


def open_policy(
    params: PolicyParams, path: Path | None = None, device: str = "cpu", *, version: str | None = None
) -> LocalPolicy | ScriptedPolicy | EndpointPolicy:
    """The policy that `params` name.

    Args:
        params: backend, base path, dtype, threads, prompt limit.
        path: weights to serve instead of the base (a round's policy); an endpoint has none.
        device: site setting.
        version: name of these weights in ledger rows; None is their digest.

    Raises:
        SetupError, CorruptionError: see `LocalPolicy.load` and `open_endpoint`; or thinking is asked of weights.
    """
    if params.backend == "endpoint":
        from opd_evolver.policy.endpoint import open_endpoint

        return open_endpoint(params.path, thinking=params.thinking, version=version)
    if params.thinking is not False:
        raise SetupError(
            f"policy.thinking = {params.thinking} with policy.backend = {params.backend}",
            "false: thinking is switched for endpoints only",
            "set policy.thinking=false",
        )
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
