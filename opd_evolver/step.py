"""One step: job.json → out/. In process, or as `python -m opd_evolver.step job.json`.

A step is keyed by (lineage, round, step, params digest, input digests, options, schema). A finished
step with the same key is not run again; a killed one is run again and picks up what it left in
its folder. Paths and digests travel between steps, never pickled objects.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from opd_evolver.durable import write_text
from opd_evolver.errors import CorruptionError, OpdError, SetupError, told
from opd_evolver.lineage import read_json
from opd_evolver.memory.weaviate_server import under_way
from opd_evolver.params import Params, nearest
from opd_evolver.processes import peak_bytes
from opd_evolver.records import SCHEMA_VERSION, Record, canonical_json, digest_of

# step name → "module:function"; imported when it runs, so that a job's check never waits for torch.
STEPS: dict[str, str] = {
    "begin": "opd_evolver.steps.fast:begin",
    "fast_shard": "opd_evolver.steps.fast:shard",
    "barrier": "opd_evolver.steps.fast:barrier",
    "snapshot": "opd_evolver.steps.fast:snapshot",
    "examples": "opd_evolver.steps.slow:examples",
    "contracts": "opd_evolver.steps.slow:contracts",
    "distil": "opd_evolver.steps.slow:distil",
    "benchmark_part": "opd_evolver.steps.benchmark:part",
    "benchmark": "opd_evolver.steps.benchmark:benchmark",
    "gate": "opd_evolver.steps.benchmark:gate",
}


class Job(Record):
    """What a step is asked to do. Paths are relative to `root` or absolute.

    Attributes:
        inputs: name → path of what it reads.
        input_digests: name → digest of what it reads; enters the key.
        options: small values; enter the key.
    """

    schema_version: int = SCHEMA_VERSION
    step: str
    lineage: str
    round: int
    root: str
    out: str
    params: dict[str, Any]
    inputs: dict[str, str] = Field(default_factory=dict)
    input_digests: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)

    def key(self) -> str:
        """The step key (architecture: idempotent steps)."""
        science = Params.model_validate(self.params).digest()
        parts = [self.schema_version, self.lineage, self.round, self.step, science, self.input_digests, self.options]
        return digest_of([canonical_json(part) for part in parts])

    def typed_params(self) -> Params:
        return Params.model_validate(self.params)

    def path(self, name: str) -> Path:
        """An input's path."""
        return Path(self.root) / self.inputs[name]

    def out_path(self) -> Path:
        return Path(self.root) / self.out


class StepResult(Record):
    """What a step leaves in out/result.json, written last.

    Attributes:
        digests, metrics: what it made.
        seconds: how long it took.
        ended: when, seconds since the epoch; 0 where it was not noted yet.
        peak_bytes: most memory that its process ever held.
        peak_device_bytes: the same of the accelerator, where it used one.
    """

    schema_version: int = SCHEMA_VERSION
    step: str
    key: str
    digests: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    ended: float = 0.0
    peak_bytes: int = 0
    peak_device_bytes: int = 0


StepFunction = Callable[[Job, Path], StepResult]


def result(job: Job, *, digests: dict[str, str] | None = None, metrics: dict[str, Any] | None = None) -> StepResult:
    """A step's result for `job`; `run` fills in time and memory."""
    return StepResult(step=job.step, key=job.key(), digests=digests or {}, metrics=metrics or {})


def finished(job: Job) -> StepResult | None:
    """The result of a finished step with the same key, else None."""
    path = job.out_path() / "result.json"
    if not path.exists():
        return None
    try:
        found = StepResult.model_validate(read_json(path))
    except (CorruptionError, ValidationError):
        return None  # a torn result is no result: the step runs again
    return found if found.key == job.key() else None


def run(job: Job) -> StepResult:
    """Run a step, or return what it left when it has finished with the same key.

    Raises:
        SetupError: unknown step.
    """
    if (done := finished(job)) is not None:
        return done
    if job.step not in STEPS:
        raise SetupError(f"unknown step `{job.step}`", " | ".join(STEPS), nearest(job.step, STEPS))
    out = job.out_path()
    marker = out / "job.json"
    key = job.key()
    if marker.exists() and read_key(marker) != key:
        shutil.rmtree(out)  # left by other parameters or inputs; never by a finished round of this run
    write_text(
        marker, canonical_json({"key": key, "job": job.model_dump(mode="json"), "schema_version": SCHEMA_VERSION})
    )
    module, _, name = STEPS[job.step].partition(":")
    function: StepFunction = getattr(importlib.import_module(module), name)
    began = time.perf_counter()
    with under_way():
        done = function(job, out)
    here, on_device = peak_bytes()
    seconds = round(time.perf_counter() - began, 3)
    peaks = {"peak_bytes": here, "peak_device_bytes": on_device}
    done = done.model_copy(update={"seconds": seconds, "ended": round(time.time(), 3), **peaks})
    write_text(out / "result.json", canonical_json(done) + "\n")
    return done


def read_key(marker: Path) -> str | None:
    """The key a folder was begun with; None when its job.json is torn."""
    try:
        return str(read_json(marker).get("key"))
    except CorruptionError:
        return None


def load_job(path: Path) -> Job:
    """A job from job.json: bare, or beside what its caller or `run` wrote with it.

    Raises:
        SetupError: malformed.
    """
    tree = read_json(path)
    try:
        return Job.model_validate(tree.get("job", tree))
    except ValidationError as error:
        raise SetupError(
            f"{path} is no job: {error.errors()[0]['msg']}", "a job.json", "let the flow write it"
        ) from None


def main(argv: list[str] | None = None) -> int:
    """`python -m opd_evolver.step job.json [PARENT]`: prints the result's path; exit codes as in `errors`.

    PARENT is the pid of whoever waits for the result: without it nobody would, and the step ends.
    """
    from opd_evolver.processes import die_with_parent

    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) not in (1, 2) or not all(argument.isdigit() for argument in arguments[1:]):
        print("usage: python -m opd_evolver.step job.json [pid of the waiting parent]", file=sys.stderr)
        return 2
    die_with_parent(int(arguments[1]) if len(arguments) == 2 else None)
    try:
        job = load_job(Path(arguments[0]))
        run(job)
    except OpdError as error:
        print(told(error), file=sys.stderr)
        return error.exit_code
    print(job.out_path() / "result.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
