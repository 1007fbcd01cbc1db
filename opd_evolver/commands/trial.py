"""`opd try`: a few tasks with a policy of one's own, everything shown, nothing kept."""

from __future__ import annotations

import argparse
from typing import Any

from opd_evolver import params as parameters
from opd_evolver.console import result
from opd_evolver.errors import SetupError

SEED = "seed"


def trial(given: argparse.Namespace) -> int:
    """Show prompts, replies, parse failures, rewards and speed, and estimate a full round."""
    if given.tasks < 1:
        raise SetupError(f"--tasks {given.tasks}", "at least 1", "for example --tasks 3")
    remote = given.policy.lower().startswith(("http://", "https://"))
    if remote and not given.model:
        from opd_evolver.policy.endpoint.address import TYPED, base_url

        url = base_url(given.policy, TYPED)
        raise SetupError(
            f"{TYPED} {url} without a model",
            "--model ID, the id under which the server knows it",
            f"{url}/models lists its models",
        )
    if given.model and not remote:
        raise SetupError(f"--model {given.model} with a folder", "a URL as --policy", "leave --model out")
    chosen = _params(given, remote)
    from opd_evolver.benchmark.trial import Trial, run
    from opd_evolver.benchmark.trial_report import report

    def show(seen: Trial) -> None:
        result(seen.model_dump(mode="json"), report(seen), as_json=given.json)

    show(run(_policy(given, chosen, remote), given.env, given.tasks, chosen, ended=show))
    return 0


def _params(given: argparse.Namespace, remote: bool) -> parameters.Params:
    """The preset for the kind of policy, the dialect it speaks, then --set."""
    chat = given.policy != SEED
    preset = given.preset or ("qwen3-4b-1gpu" if chat else "laptop")
    overrides: dict[str, Any] = {
        "policy.backend": "endpoint" if remote else "local",
        "policy.path": given.model if remote else given.policy,
        "policy.dialect": given.dialect or ("instruct" if chat else "terse"),
        "environments.domains": [given.env],
        "memory.store": "embedded",
        # An endpoint's tokens cannot be counted before they are sent.
        **({"memory.budget_unit": "words"} if remote else {}),
        **({} if remote or given.preset else {"policy.dtype": "float32"}),
        **parameters.parse_set(given.pairs),
    }
    return parameters.load(preset=preset, overrides=overrides)


def _policy(given: argparse.Namespace, chosen: parameters.Params, remote: bool) -> Any:
    from opd_evolver.settings import load_settings

    if remote:
        from opd_evolver.policy.endpoint import open_endpoint

        return open_endpoint(chosen.policy.path, thinking=chosen.policy.thinking, url=given.policy)
    from opd_evolver.policy.registry import open_policy
    from opd_evolver.steps import prepare

    prepare.check_budgets(chosen)
    return open_policy(chosen.policy, device=load_settings().device)
