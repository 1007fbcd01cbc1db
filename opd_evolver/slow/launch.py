"""Distillation in several processes: `slow.processes` of `slow.threads` threads each.

A tiny policy's kernels are too small for threads: on two cores two processes take half the time of one, two threads
do not. Each process works on its share of a step's examples and gradients are added up. How many there are changes
the last bits, so it is a science parameter. On GPUs each process has one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opd_evolver.durable import read_json, write_text
from opd_evolver.errors import OpdError, retold, told
from opd_evolver.params import Params
from opd_evolver.processes import die_with_parent
from opd_evolver.records import Record, canonical_json
from opd_evolver.slow.train import DistilReport, OnProgress
from opd_evolver.slow.train import distil as distil_here

REPORT = "report.json"
POLL_S = 0.2


class Spec(Record):
    """The arguments of `distil`, for a process of its own."""

    policy_path: str
    base_path: str
    examples_folder: str
    target: str
    work: str
    params: Params
    round: int
    device: str
    anchor_file: str | None


def distil(
    policy_path: str | Path,
    base_path: str | Path,
    examples_folder: Path,
    target: Path,
    work: Path,
    params: Params,
    round: int,
    on_progress: OnProgress | None = None,
    *,
    device: str = "cpu",
    anchor_file: Path | None = None,
) -> DistilReport:
    """As `train.distil`, in as many processes as `slow.processes` says; one is this one.

    Raises:
        OpdError: a process was lost; called again it goes on from the last checkpoint.
        (others): as `train.distil`.
    """
    if params.slow.processes == 1:
        return distil_here(
            *(policy_path, base_path, examples_folder, target, work, params, round, on_progress),
            device=device,
            anchor_file=anchor_file,
        )
    spec = Spec(
        policy_path=str(policy_path),
        base_path=str(base_path),
        examples_folder=str(examples_folder),
        target=str(target),
        work=str(work),
        params=params,
        round=round,
        device=device,
        anchor_file=None if anchor_file is None else str(anchor_file),
    )
    (work / REPORT).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="opd-distil-") as scratch:
        path = Path(scratch) / "spec.json"
        write_text(path, canonical_json(spec))
        with _ranks(path, params.slow.processes, params.slow.threads) as ranks:
            for line in _lines_of_the_first(ranks):
                done, total = (int(word) for word in line.split())
                if on_progress is not None:
                    on_progress(done, total)
            _wait(ranks, Path(scratch))
    return DistilReport.model_validate(read_json(work / REPORT))


Ranks = Sequence[subprocess.Popen[str]]


@contextmanager
def _ranks(spec: Path, n: int, threads: int) -> Iterator[Ranks]:
    """The processes; none of them survives."""
    common = {
        **os.environ,
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
    }
    if sys.platform == "linux":
        common["GLOO_SOCKET_IFNAME"] = "lo"  # else the machine's name must resolve
    started: list[subprocess.Popen[str]] = []
    try:
        for rank in range(n):
            with (spec.parent / f"{rank}.err").open("w") as errors:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "opd_evolver.slow.launch", str(spec), str(os.getpid())],
                        env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                        stderr=errors,
                        text=True,
                    )
                )
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _lines_of_the_first(ranks: Ranks) -> Iterator[str]:
    """What the first process tells, until it ends or another one fails (it would wait for that one in vain)."""
    import selectors

    assert ranks[0].stdout is not None
    with selectors.DefaultSelector() as ready:
        ready.register(ranks[0].stdout, selectors.EVENT_READ)
        while not any(process.poll() for process in ranks):
            if ready.select(POLL_S):
                line = ranks[0].stdout.readline()
                if not line:
                    return
                yield line


def _wait(ranks: Ranks, scratch: Path) -> None:
    """Until all are done, or one has failed; then its error."""
    while (codes := [process.poll() for process in ranks]).count(0) < len(ranks):
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            raise _error_of((scratch / f"{failed}.err").read_text(encoding="utf-8"), failed, codes[failed])
        ranks[codes.index(None)].wait()


def _error_of(stderr: str, rank: int, code: int | None) -> OpdError:
    last = stderr.strip().splitlines()[-1] if stderr.strip() else ""
    seen = f"process {rank} of the distillation ended with {code}"
    return retold(last) or OpdError(f"{seen}: {last}" if last else seen, "exit 0", "opd resume")


def _work(spec: Spec) -> None:
    """One process's share; the first one tells of it."""
    first = os.environ["RANK"] == "0"
    report = distil_here(
        *(spec.policy_path, spec.base_path, Path(spec.examples_folder), Path(spec.target), Path(spec.work)),
        *(spec.params, spec.round, (lambda done, total: print(done, total, flush=True)) if first else None),
        device=spec.device,
        anchor_file=None if spec.anchor_file is None else Path(spec.anchor_file),
    )
    if first:
        write_text(Path(spec.work) / REPORT, canonical_json(report))


def main(arguments: Sequence[str]) -> int:
    """`python -m opd_evolver.slow.launch SPEC PARENT`: the processes that `distil` starts."""
    die_with_parent(int(arguments[1]))
    try:
        _work(Spec.model_validate(read_json(Path(arguments[0]))))
    except OpdError as error:
        print(told(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
