"""Distillation in several processes: `slow.processes` of `slow.threads` threads each.

A tiny policy's kernels are too small for threads: on two cores two processes take half the time of one, two threads
do not. Each process works on its share of a step's examples and gradients are added up. How many there are changes
the last bits, so it is a science parameter. On GPUs each process has one.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from opd_evolver.durable import read_json, write_text
from opd_evolver.errors import OpdError, left_by, pass_on, told
from opd_evolver.processes import die_with_parent
from opd_evolver.records import canonical_json
from opd_evolver.slow.train import Distillation, DistilReport, OnProgress
from opd_evolver.slow.train import distil as distil_here

REPORT = "report.json"
POLL_S = 0.2


def distil(what: Distillation, on_progress: OnProgress | None = None) -> DistilReport:
    """As `train.distil`, in as many processes as `slow.processes` says; one is this one.

    Raises:
        OpdError: a process was lost; called again it goes on from the last checkpoint.
        (others): as `train.distil`.
    """
    slow = what.params.slow
    if slow.processes == 1:
        return distil_here(what, on_progress)
    report = what.work / REPORT
    report.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="opd-distil-") as scratch:
        path = Path(scratch) / "distillation.json"
        write_text(path, canonical_json(what))
        with _ranks(path, what.work, slow.processes, slow.threads) as ranks:
            for line in _lines_of_the_first(ranks):
                done, total = (int(word) for word in line.split())
                if on_progress is not None:
                    on_progress(done, total)
            _wait(ranks)
    return DistilReport.model_validate(read_json(report))


class Rank(NamedTuple):
    """One of the processes, and where in `log` begins what it says on stderr."""

    process: subprocess.Popen[bytes]
    log: Path
    begin: int

    def said(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self.begin)
            return file.read().decode(errors="replace")


Ranks = Sequence[Rank]


@contextmanager
def _ranks(written: Path, work: Path, n: int, threads: int) -> Iterator[Ranks]:
    """The processes; none of them survives, and what they said is passed on."""
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
    started: list[Rank] = []
    work.mkdir(parents=True, exist_ok=True)
    try:
        for rank in range(n):
            log = work / f"rank-{rank}.err"
            with log.open("ab") as errors:
                begin = errors.tell()  # the process shares the place
                process = subprocess.Popen(
                    [sys.executable, "-m", "opd_evolver.slow.launch", str(written), str(os.getpid())],
                    env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                    stderr=errors,
                    bufsize=0,  # else lines would wait in a buffer that `select` does not see
                )
                started.append(Rank(process, log, begin))
        yield started
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()
            if one.process.stdout is not None:
                one.process.stdout.close()
        for one in started:
            for line in one.said().splitlines(keepends=True):
                pass_on(line)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _lines_of_the_first(ranks: Ranks) -> Iterator[bytes]:
    """What the first process tells, until it ends or another one fails (it would wait for that one in vain)."""
    out = ranks[0].process.stdout
    assert out is not None
    with selectors.DefaultSelector() as ready:
        ready.register(out, selectors.EVENT_READ)
        while not any(one.process.poll() for one in ranks):
            if ready.select(POLL_S):
                line = out.readline()
                if not line:
                    return
                yield line


def _wait(ranks: Ranks) -> None:
    """Until all are done, or one has failed; then its error."""
    while (codes := [one.process.poll() for one in ranks]).count(0) < len(ranks):
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            seen = f"process {failed} of the distillation ended with {codes[failed]}"
            raise left_by(ranks[failed].said(), seen, "opd resume", ranks[failed].log)
        ranks[codes.index(None)].process.wait()


def _work(what: Distillation) -> None:
    """One process's share; the first one tells of it."""
    first = os.environ["RANK"] == "0"
    with os.fdopen(os.dup(1), "w") as told_here:
        os.dup2(2, 1)  # what an environment prints is no progress
        report = distil_here(
            what, (lambda done, total: print(done, total, file=told_here, flush=True)) if first else None
        )
    if first:
        write_text(what.work / REPORT, canonical_json(report))


def main(arguments: Sequence[str]) -> int:
    """`python -m opd_evolver.slow.launch FILE PARENT`: the processes that `distil` starts."""
    die_with_parent(int(arguments[1]))
    try:
        _work(Distillation.model_validate(read_json(Path(arguments[0]))))
    except OpdError as error:
        print(told(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
