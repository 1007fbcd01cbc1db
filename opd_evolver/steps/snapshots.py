"""Where the memories of finished rounds lie, fetched by DVC where only their pointer is here."""

from __future__ import annotations

from pathlib import Path

from opd_evolver import versioning
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory.snapshot import verify


def last_finished(run: Run) -> int:
    """The last finished round.

    Raises:
        SetupError: none has finished yet.
    """
    finished = run.finished_rounds()
    if not finished:
        raise SetupError(
            f"run `{run.lineage}` has no finished round yet", "at least one", f"opd resume {run.identity.name}"
        )
    return finished[-1]


def held(run: Run) -> int:
    """The round whose memory and policy the next round starts from; it differs from the last one after a refusal.

    Raises:
        SetupError: no round has finished, or the gate has refused every one.
    """
    round_ = run.held(last_finished(run) + 1)
    if round_ == 0:
        raise SetupError(
            f"the gate has refused every round of `{run.lineage}`: the next one starts from an empty memory",
            "a promoted round",
            f"opd rounds {run.identity.name} shows why",
        )
    return round_


def folder_of(run: Run, round_: int) -> Path:
    """The snapshot of a finished round, brought back first where only its pointer is here.

    Raises:
        SetupError: neither folder nor pointer, or no DVC project.
        CorruptionError: its bytes are neither in DVC's cache nor in a remote.
    """
    folder = run.owner(round_).version(round_) / "memory"
    pointer = versioning.pointer_of(folder)
    if not folder.exists() and pointer.exists():
        versioning.checkout(run.root, pointer)
    return folder


def sound(run: Run, round_: int) -> Path:
    """The folder of a finished round, whose memory and policy are what its summary says, fetched by DVC where need be.

    Raises:
        SetupError: their bytes are nowhere.
        CorruptionError: they do not match the round's digests.
    """
    from opd_evolver.policy.weights import weights_digest

    folder, summary = run.owner(round_).version(round_), run.summary(round_)
    if summary is None:
        raise ValueError(f"round {round_} has not finished")
    for part in (folder / "memory", folder / "policy"):
        if not part.exists():
            versioning.checkout(run.root, versioning.pointer_of(part))
    info, digests = verify(folder / "memory"), summary["digests"]
    seen = {"entries": info.digest_entries, "ledger": info.digest_ledger, "weights": weights_digest(folder / "policy")}
    for name, digest in seen.items():
        if digest != digests[name]:
            raise CorruptionError(
                f"{name} of round {round_} have digest {digest[:12]}",
                f"{digests[name][:12]}, as its summary says",
                f"fetch them again: dvc checkout {folder}/memory.dvc {folder}/policy.dvc",
            )
    return folder
