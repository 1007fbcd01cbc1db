"""Where a step runs: in this process, in one that stays, in a child that frees the GPU when it ends, or deployed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from opd_evolver import processes, step
from opd_evolver.durable import explained, write_text
from opd_evolver.errors import OpdError, OutageError, left_by, pass_on
from opd_evolver.records import canonical_json


def run_inline(job: step.Job) -> step.StepResult:
    return step.run(job)


_pools: dict[int, ProcessPoolExecutor] = {}
_opening = threading.Lock()


def _pool(n: int) -> ProcessPoolExecutor:
    """`n` processes that keep their policies and engines open; they end with this one."""
    with _opening:
        if n not in _pools:
            context, waiting = multiprocessing.get_context("spawn"), processes.waiting()
            _pools[n] = ProcessPoolExecutor(n, context, initializer=processes.serve, initargs=(waiting,))
        return _pools[n]


def run_pool(job: step.Job) -> step.StepResult:
    """One of `flows.shards` processes; beside other steps, since one alone runs as well in this one.

    Raises:
        OutageError: a process was killed; the next try has new ones.
    """
    if (done := step.finished(job)) is not None:
        return done
    n = job.typed_params().flows.shards
    pool = _pool(n)
    try:
        return pool.submit(step.run, job).result()
    except BrokenProcessPool as error:
        with _opening:
            if _pools.get(n) is pool:
                del _pools[n]
        raise OutageError(
            f"a process that ran {job.step} of round {job.round} was killed",
            f"{n} processes that live; each needs as much memory as one run",
            f"free memory, or set flows.shards lower; then opd resume {job.lineage.partition('~')[0]}",
        ) from error


def run_subprocess(job: step.Job) -> step.StepResult:
    """A child process that dies with this one; its one-line error comes back as the error it was.

    What it says on stderr is passed on, and kept beside its folder.
    """
    if (done := step.finished(job)) is not None:
        return done
    path, log = job.out_path().with_suffix(".job.json"), job.out_path().with_suffix(".err")
    write_text(path, canonical_json(job))
    with subprocess.Popen(
        [sys.executable, "-m", "opd_evolver.step", str(path), str(os.getpid())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as child:
        assert child.stderr is not None
        said = ""
        try:
            with explained(log), log.open("a", encoding="utf-8") as kept:
                for line in child.stderr:
                    said += line
                    kept.write(line)
                    kept.flush()
                    pass_on(line)
        except BaseException:
            child.kill()
            raise
    if child.returncode == 0 and (done := step.finished(job)) is not None:
        return done
    why = f"signal {-child.returncode}" if child.returncode < 0 else f"exit {child.returncode}"
    seen = f"step {job.step} of round {job.round} ended with {why}"
    raise left_by(said, seen, f"opd resume {job.lineage.partition('~')[0]}", log)


def run_deployment(job: step.Job) -> step.StepResult:
    """The deployment `step/gpu` on the pool `gpu`, which must not be the pool this flow waits on.

    On one machine the step dies with this process, whose resumed run could meet it in the same folder.
    """
    from prefect.deployments import run_deployment as start

    if (done := step.finished(job)) is not None:
        return done
    path = job.out_path().with_suffix(".job.json")
    write_text(path, canonical_json({"job": job.model_dump(mode="json"), "waiting": processes.waiting()}))
    flow_run = start("step/gpu", parameters={"job_path": str(path)}, as_subflow=True)
    if (done := step.finished(job)) is not None:
        return done
    state = flow_run.state  # type: ignore[union-attr]
    raise OpdError(
        f"step {job.step} ran as step/gpu and ended {state}",
        "a result",
        "see the flow run in the Prefect UI; then opd resume",
    )


PLACES = {"inline": run_inline, "pool": run_pool, "subprocess": run_subprocess, "deployment": run_deployment}


def _is_outage(_task: object, _run: object, state: object) -> bool:
    """Only outages are worth another try; everything else would fail again."""
    data = getattr(state, "data", None)
    return isinstance(data, OutageError) or "OutageError" in str(getattr(state, "message", ""))


@task(
    task_run_name="{label}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_is_outage,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def place(job_json: str, label: str, placement: str) -> str:
    """Run one step where `placement` says; returns its result as JSON (small: digests and metrics)."""
    return PLACES[placement](step.Job.model_validate_json(job_json)).model_dump_json()


def run_steps(jobs: list[step.Job], placement: str, on_done: Callable[[int], None] | None = None) -> None:
    """Run jobs at the same time when each has a process of its own, else one after the other.

    Args:
        jobs: none needs what another makes.
        placement: where.
        on_done: told how many of the first ones have ended, each time that this grows.
    """
    ends: list[Callable[[], object]]
    if placement != "inline" and len(jobs) > 1:
        ends = [place.submit(canonical_json(job), _label(job), placement).result for job in jobs]
    else:
        ends = [partial(run_step, job, placement) for job in jobs]
    for done, end in enumerate(ends, start=1):
        end()
        if on_done is not None:
            on_done(done)


def run_step(job: step.Job, placement: str) -> step.StepResult:
    placement = "inline" if placement == "pool" else placement  # alone it gains nothing elsewhere
    return step.StepResult.model_validate_json(place(canonical_json(job), _label(job), placement))


def _label(job: step.Job) -> str:
    return f"{Path(job.out).name} · {job.step} · round {job.round}"
