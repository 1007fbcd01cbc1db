"""`opd run` and `opd resume`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from opd_evolver.commands.display import Watch
from opd_evolver.commands.rounds import print_rounds
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run, open_run
from opd_evolver.params import parse_set
from opd_evolver.steps import dispatch, prepare, publish


def run(given: argparse.Namespace) -> int:
    """Begin, resume or extend a run; when all its rounds are finished, say so and do nothing."""
    root = prepare.artifact_root()
    overrides = parse_set(given.pairs)
    finished = prepare.finished_run(root, given.name, preset=given.preset, overrides=overrides, fork=given.fork)
    if finished is not None:
        return _nothing_to_do(finished, given)
    if given.local or given.up or dispatch.api_url() is None:
        dispatch.need_project()
    prepared = prepare.open_for_work(root, given.name, preset=given.preset, overrides=overrides, fork=given.fork)
    return _carry_out(prepared, given)


def resume(given: argparse.Namespace) -> int:
    """Take an interrupted run to its end, with the parameters it was begun with."""
    root = prepare.artifact_root()
    prepared = open_run(root, given.name)
    if prepared.is_complete():
        return _nothing_to_do(prepared, given)
    name = prepared.identity.name
    if (current := open_run(root, name).lineage) != prepared.lineage:
        raise SetupError(
            f"`{prepared.lineage}` is not the lineage that `{name}` goes on with",
            f"the current one, `{current}`",
            f"opd memory undo --name {name} returns to the one before it; then: opd resume {name}",
        )
    return _carry_out(prepared, given)


def _nothing_to_do(finished: Run, given: argparse.Namespace) -> int:
    if not publish.is_published(finished):
        print(f"run `{finished.lineage}`: logging what MLflow and DVC have not taken yet", file=sys.stderr)
        publish.versions(finished)
    print(f"run `{finished.lineage}`: all {finished.params.rounds} rounds are finished; nothing to do", file=sys.stderr)
    print_rounds(finished, as_json=given.json)
    return 0


def _carry_out(prepared: Run, given: argparse.Namespace) -> int:
    try:
        finished_elsewhere = to_its_end(prepared, lambda watch: _dispatch(prepared, given, watch))
    except KeyboardInterrupt:
        return interrupted(dispatch.resume_command(prepared))
    if finished_elsewhere:
        return _nothing_to_do(prepared, given)
    print_rounds(prepared, as_json=given.json)
    return 0


def to_its_end(prepared: Run, carry_out: Callable[[Watch], None]) -> bool:
    """Carry a run out under a display; whether another process has finished it meanwhile."""
    prepare.base(prepared)
    with Watch(prepared) as watch:
        if dispatch.wait_for_writer(prepared, watch.tick) and prepared.is_complete():
            return True
        carry_out(watch)
    return False


def interrupted(command: str) -> int:
    """What Ctrl-C says, and its exit code."""
    print(f"\ninterrupted; finished rounds are kept. Go on with: {command}", file=sys.stderr)
    return 130


def _dispatch(prepared: Run, given: argparse.Namespace, watch: Watch) -> None:
    if given.local:
        dispatch.locally(prepared, watch.tick)
        return
    from opd_evolver import stack
    from opd_evolver.settings import load_settings

    if given.up:
        params = prepared.params
        wanted = {"worker-gpu": params.flows.placement == "deployment", "weaviate": params.memory.store == "weaviate"}
        with stack.running(load_settings(), extras=tuple(name for name, asked in wanted.items() if asked)):
            _same_settings(stack.begun_otherwise())
            dispatch.through_worker(prepared, watch.tick)
        return
    stack.mend(load_settings())  # a worker that was killed would never take the run
    url = dispatch.api_url()
    if url is None:
        watch.say("no Prefect server is configured here: running without one (`opd up` starts one)")
        dispatch.locally(prepared, watch.tick)
        return
    dispatch.need_deployment(url)
    _same_settings(stack.begun_otherwise())
    watch.say(f"through the deployment {dispatch.DEPLOYMENT} at {url}")
    dispatch.through_worker(prepared, watch.tick)


def _same_settings(otherwise: list[str]) -> None:
    if otherwise:
        raise SetupError(
            f"the worker of `opd up` was started with another {' and another '.join(otherwise)}",
            "the settings of this command",
            "opd down, then opd up with them; or add --local",
        )
