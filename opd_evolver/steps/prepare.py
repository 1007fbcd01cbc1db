"""Before the first step: which run, with which parameters, from which policy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from opd_evolver import lineage, params
from opd_evolver.durable import write_text
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run
from opd_evolver.records import SCHEMA_VERSION, canonical_json
from opd_evolver.steps import plan

ROOM = 8
"""One token of so many in a prompt is left to instructions, task and history."""


def artifact_root() -> Path:
    """Where runs/ and versions/ lie: OPD_ARTIFACT_ROOT, else the project's folder."""
    from opd_evolver.settings import load_settings

    return Path(load_settings().artifact_root).resolve()


def open_for_work(
    root: Path, name: str, *, preset: str | None, overrides: Mapping[str, Any], fork: bool = False
) -> Run:
    """Create, resume, extend or fork the run `name`.

    Raises:
        SetupError: it cannot begin, its parameters changed without `fork`, or its base policy is another one now.
    """
    if (
        preset is None
        and not overrides
        and not fork
        and lineage.exists(root, name)
        and not Path("params.yaml").exists()
    ):
        return lineage.open_run(root, name)
    wanted = params.load(preset=preset, overrides=overrides)
    begun = lineage.open_run(root, name) if lineage.exists(root, name) else None
    if fork or begun is None:
        check(wanted)
    if begun is not None and (not fork or _keeps_its_base(begun, wanted)):
        _same_base(begun)
    return lineage.open_or_create(root, name, wanted, fork=fork)


def _keeps_its_base(run: Run, wanted: params.Params) -> bool:
    """Whether a fork has rounds of the run under it, and with them its base policy."""
    return run.identity.parent is not None and lineage.keeps_rounds(lineage.differences(run.params, wanted))


def check(wanted: params.Params) -> None:
    """Whether a run could begin: environments, embedder and policy are there. Before anything is written, so that a
    mended mistake is no changed parameter.

    Raises:
        SetupError, CorruptionError: what is missing, damaged or does not fit.
        OutageError: the embeddings endpoint does not answer.
    """
    from opd_evolver.environments import registry
    from opd_evolver.memory.embed import open_embedder
    from opd_evolver.settings import load_settings

    check_budgets(wanted)
    check_devices(wanted, load_settings().device)
    for domain in wanted.environments.domains:
        registry.load(domain, wanted.environments.levels, wanted.environments.headroom).close()
    open_embedder(wanted.memory.embedder).ready()
    if wanted.policy.backend == "endpoint":
        raise SetupError(
            "policy.backend = endpoint in a co-evolution",
            "a policy whose weights can be trained: an endpoint acts and writes, but gives no trainable rows",
            "set policy.backend=local; an endpoint is opened with opd_evolver.policy.registry.open_policy",
        )
    if wanted.policy.backend == "local":
        from opd_evolver.policy import weights

        for file in weights.weight_files(weights.resolve(wanted.policy.path)):
            weights.tensors_of(file)
        limit, reply = wanted.policy.max_prompt_tokens, wanted.fast.longest_reply
        weights.check_positions(wanted.policy.path, prompt=limit, reply=reply)


def check_budgets(wanted: params.Params) -> None:
    """Whether memories fit into every ability's prompt, where budgets count tokens; what words come to is not known.

    Raises:
        SetupError: they could fill a prompt, which would end the run in mid-round: memories are never cut from one.
    """
    memory, limit = wanted.memory, wanted.policy.max_prompt_tokens
    if memory.budget_unit != "tokens":
        return
    most = limit - limit // ROOM
    for ability, number, budget in (
        ("select", "candidates", "candidate_token_budget"),
        ("act", "max_selected", "entry_token_budget"),
        ("maintain", "candidates", "entry_token_budget"),
    ):
        n, each = getattr(memory, number), getattr(memory, budget)
        if n * each > most:
            raise SetupError(
                f"memory.{number} = {n} with memory.{budget} = {each}: {n * each} tokens in a prompt of {ability}",
                f"at most {most} of policy.max_prompt_tokens = {limit}; the rest is for instructions, task and history",
                f"lower memory.{budget} to {most // n}, lower memory.{number}, or raise policy.max_prompt_tokens",
            )


def check_devices(wanted: params.Params, device: str) -> None:
    """Whether each process of a distillation has a GPU; deployments run on machines that are not asked.

    Raises:
        SetupError: there are fewer, which would end the run after its fast loop, or one is asked for by its number.
    """
    if wanted.slow.processes == 1 or not device.startswith("cuda") or wanted.flows.placement == "deployment":
        return
    if ":" in device:
        raise SetupError(
            f"slow.processes = {wanted.slow.processes} with OPD_DEVICE={device}",
            "OPD_DEVICE=cuda: each process of a distillation has a GPU of its own",
            "name them by CUDA_VISIBLE_DEVICES, and set OPD_DEVICE=cuda",
        )
    import torch

    if wanted.slow.processes > (n := torch.cuda.device_count()):
        raise SetupError(
            f"slow.processes = {wanted.slow.processes} with OPD_DEVICE={device}",
            f"at most {n}, the GPUs of this machine: each process of a distillation has one",
            "set slow.processes=1",
        )


def finished_run(
    root: Path, name: str, *, preset: str | None, overrides: Mapping[str, Any], fork: bool = False
) -> Run | None:
    """The run when there is nothing to do, else None. Needs no heavy import and writes nothing.

    Raises:
        SetupError: its base policy is another one now.
    """
    if not lineage.exists(root, name):
        return None
    run = lineage.open_run(root, name)
    wanted = params.load(preset=preset, overrides=overrides)
    if fork or lineage.differences(run.params, wanted) or wanted.rounds > run.params.rounds or not run.is_complete():
        return None
    _same_base(run)
    return run


def base(run: Run) -> None:
    """Record the base policy's path and weights digest once (base.json), checking that it can be read.

    Raises:
        SetupError: it was recorded, and its weights are other ones now.
    """
    path = run.owner(0).run / "base.json"
    if path.exists():
        _same_base(run)
        return
    from opd_evolver.policy.weights import resolve

    # Steps read paths from the artifact root on, in any folder; a project is moved with what lies in it.
    folder, root = resolve(run.params.policy.path).resolve(), run.root.resolve()
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    digest, under = _digests_of(folder)
    tree = {"schema_version": SCHEMA_VERSION, "policy": str(place), "policy_digest": digest, "under_adapter": under}
    write_text(path, canonical_json(tree) + "\n")


def _same_base(run: Run) -> None:
    """Whether the weights are those that the run began with: every step key and measurement names their digest."""
    if not (run.owner(0).run / "base.json").exists():
        return
    path, digest = plan.base_policy(run)
    folder = run.root / path
    # A folder that is gone, and what lay under an adapter, is named by whoever needs it; what is finished does not.
    if not folder.is_dir():
        return
    recorded = plan.under_base(run)
    seen, under = _digests_of(folder, with_under=recorded is not None and _has_its_base(folder))
    for what, now, then in (("", seen, digest), (", under the adapter", under, recorded)):
        if now is not None and then is not None and now != then:
            raise SetupError(
                f"the base policy in {folder} is another one than `{run.lineage}` began with{what}: digest {now[:12]}",
                then[:12],
                "restore it, or choose a new --name",
            )


def _has_its_base(folder: Path) -> bool:
    from opd_evolver.policy.weights import adapter_base

    try:
        adapter_base(folder)
    except SetupError:
        return False
    return True


def _digests_of(folder: Path, *, with_under: bool = True) -> tuple[str, str | None]:
    """Of its tensors, and of what lies under an adapter; once a process while no file changes: it may be gigabytes."""
    from opd_evolver.policy.weights import ADAPTER_CONFIG, adapter_base, is_adapter, weight_files

    files, under = weight_files(folder), []
    if with_under and is_adapter(folder):
        under = [folder / ADAPTER_CONFIG, *weight_files(adapter_base(folder))]
    states = ((file, file.stat()) for file in (*files, *under))
    return _digests(folder, bool(under), tuple((file, state.st_size, state.st_mtime_ns) for file, state in states))


@lru_cache(maxsize=2)
def _digests(folder: Path, with_under: bool, _files: tuple[tuple[Path, int, int], ...]) -> tuple[str, str | None]:
    from opd_evolver.policy.weights import under_adapter, weights_digest

    return weights_digest(folder), under_adapter(folder) if with_under else None


def hosted(run: Run) -> None:
    """Whether the server that hosts the memory answers, before the first step; later a dead one is waited for.

    Raises:
        SetupError: it does not, or refuses the key.
    """
    if run.params.memory.store == "weaviate":
        from opd_evolver.memory.weaviate_server import open_server

        open_server().close()
