"""Run identity: one name, its lineages and its rounds.

The same command again resumes; changed science parameters are listed and refused; more rounds
extend. Rollback and fork open a lineage `name~2`; nothing is rewritten, and undo returns.

    runs/<name>/HEAD.jsonl            append-only: which lineage is current, and why
    runs/<lineage>/run.json           identity: name, parent, resolved parameters
    runs/<lineage>/rounds/*.json      one summary per finished round (round-000: the base policy)
    versions/<lineage>/round-NNN/     memory/ and policy/ of that round
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from opd_evolver import heads
from opd_evolver.durable import read_json as read_json
from opd_evolver.durable import write_text
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.heads import Action, Head
from opd_evolver.memory import edits
from opd_evolver.params import Params, flat, nearest, validate
from opd_evolver.records import SCHEMA_VERSION, Record, canonical_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Parent(Record):
    """Where a lineage branched off: rounds up to `round` are the parent's; `reembeds`: embedders it left behind."""

    lineage: str
    round: int
    reembeds: tuple[str, ...] = ()


class RunIdentity(Record):
    """What run.json holds."""

    schema_version: int = SCHEMA_VERSION
    name: str
    lineage: str
    parent: Parent | None = None
    params: dict[str, Any]
    params_digest: str


class RunPaths:
    """Every path of one lineage, below one artifact root."""

    def __init__(self, root: Path, lineage: str) -> None:
        self.root, self.lineage = root, lineage
        self.run = root / "runs" / lineage
        self.versions = root / "versions" / lineage

    @property
    def identity(self) -> Path:
        return self.run / "run.json"

    @property
    def params(self) -> Path:
        return self.run / "params.yaml"

    @property
    def progress(self) -> Path:
        return self.run / "progress.jsonl"

    def live(self, round_: int) -> Path:
        return self.run / "live" / f"round-{round_:03d}"

    def step(self, round_: int, name: str) -> Path:
        return self.run / "steps" / f"round-{round_:03d}" / name

    def summary(self, round_: int) -> Path:
        return self.run / "rounds" / f"round-{round_:03d}.json"

    def version(self, round_: int) -> Path:
        return self.versions / f"round-{round_:03d}"


class Run:
    """One lineage of a named run, with its parameters and its parents."""

    def __init__(self, root: Path, identity: RunIdentity) -> None:
        self.root, self.identity = root, identity
        self.paths = RunPaths(root, identity.lineage)
        self.params = validate(identity.params, str(self.paths.identity))

    @property
    def lineage(self) -> str:
        return self.identity.lineage

    @property
    def reembeds(self) -> tuple[str, ...]:
        """Identities of embedders whose snapshots this lineage embeds anew."""
        return self.identity.parent.reembeds if self.identity.parent is not None else ()

    def owner(self, round_: int) -> RunPaths:
        """The lineage that holds `round_`: this one, or the ancestor it branched from."""
        identity = self.identity
        while identity.parent is not None and round_ <= identity.parent.round:
            identity = read_identity(self.root, identity.parent.lineage)
        return RunPaths(self.root, identity.lineage)

    def summary(self, round_: int) -> dict[str, Any] | None:
        """The summary of a finished round, or None when it has not finished."""
        path = self.owner(round_).summary(round_)
        return read_json(path) if path.exists() else None

    def finished_rounds(self) -> list[int]:
        """Finished rounds from 1 on, without gaps."""
        done: list[int] = []
        while self.summary(len(done) + 1) is not None:
            done.append(len(done) + 1)
        return done

    def held(self, round_: int) -> int:
        """The round whose policy and memory `round_` begins with; 0: the base policy and no memory."""
        before = self.summary(round_ - 1) if round_ > 0 else None
        return int(before["champion"]) if before else 0

    def edit_files(self, after: int, until: int | None = None) -> dict[int, Path]:
        """By round, where edits by hand lie: of rounds behind `after`, also of the two for which they can wait."""
        last = len(self.finished_rounds()) + 2 if until is None else until
        return {n: edits.file_of(self.owner(n).run, n) for n in range(after + 1, last + 1)}

    def is_complete(self, rounds: int | None = None) -> bool:
        return self.summary(0) is not None and len(self.finished_rounds()) >= (rounds or self.params.rounds)


def read_identity(root: Path, lineage: str) -> RunIdentity:
    """The identity of a lineage.

    Raises:
        SetupError: no such run; names the nearest.
    """
    path = RunPaths(root, lineage).identity
    if not path.exists():
        known = sorted(folder.name for folder in (root / "runs").glob("*") if (folder / "run.json").exists())
        raise SetupError(
            f"no run `{lineage}` in {root / 'runs'}",
            f"one of {known or 'none yet'}",
            nearest(lineage, known) if known else "start one: opd run",
        )
    try:
        return RunIdentity.model_validate(read_json(path))
    except ValidationError as error:
        raise CorruptionError(
            f"{path} is malformed: {error.errors()[0]['msg']}", "a run identity", f"restore {path}"
        ) from None


def open_run(root: Path, name: str) -> Run:
    """The current lineage of an existing run; `name~2` names a lineage outright, `name~1` the first one."""
    lineage = name.removesuffix("~1")
    if "~" not in name:
        known = heads.read(root, name)
        lineage = known[-1].lineage if known else name
    return Run(root, read_identity(root, lineage))


def exists(root: Path, name: str) -> bool:
    return RunPaths(root, name).identity.exists()


def differences(old: Params, new: Params) -> list[str]:
    """Science parameters that differ, one line each."""
    before, after = flat(old.science()), flat(new.science())
    keys = sorted(before.keys() | after.keys())
    return [f"{key}: {before.get(key)!r} → {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]


def open_or_create(root: Path, name: str, params: Params, *, fork: bool = False) -> Run:
    """The run to work on: created, resumed, extended by more rounds, or forked.

    Raises:
        SetupError: bad name, or science parameters changed without `fork` (lists them).
    """
    if not NAME.fullmatch(name):
        raise SetupError(f"run name `{name}`", "letters, digits, `.`, `_`, `-`, at most 64", "choose another --name")
    if not exists(root, name):
        return _create(root, name, name, params, None, "open")
    run = open_run(root, name)
    changed = differences(run.params, params)
    if changed and fork:
        kept = run.identity.parent if keeps_rounds(changed) else None
        return _create(root, name, next_lineage(root, name), params, kept, "fork", "; ".join(changed), run)
    if changed:
        raise SetupError(
            f"run `{name}` has other science parameters ({'; '.join(changed)})",
            "the parameters it was begun with",
            "choose a new --name, or --fork",
        )
    if params.rounds > run.params.rounds or params.flows != run.params.flows:
        rounds = max(params.rounds, run.params.rounds)
        run = Run(root, _write_identity(root, run.identity, params.model_copy(update={"rounds": rounds})))
    return run


def keeps_rounds(changed: list[str]) -> bool:
    """Whether a fork may keep the rounds that a rollback kept: what was played and measured in them still holds."""
    decisive = ("seed:", "policy.", "environments.", "benchmark.", "memory.embedder:", "memory.store:")
    return not any(one.startswith(decisive) for one in changed)


def next_lineage(root: Path, name: str) -> str:
    """The first free `name~k`, k = 2, 3, …"""
    k = 2
    while exists(root, f"{name}~{k}"):
        k += 1
    return f"{name}~{k}"


def branch(
    root: Path, name: str, round_: int, params: Params | None = None, reembeds: Collection[str] = (), reason: str = ""
) -> Run:
    """A new lineage whose rounds up to `round_` are the current one's: a rollback, or a re-embedding with `params`.

    Args:
        root, name: the run.
        round_: its last round that is kept.
        params: of the new lineage; None: as they were.
        reembeds: identities of embedders that are left behind.
        reason: for HEAD.jsonl.

    Raises:
        SetupError: that round has not finished.
    """
    run = open_run(root, name)
    if run.summary(round_) is None:
        raise SetupError(
            f"round {round_} of `{run.lineage}` has not finished", f"one of {run.finished_rounds()}", "opd rounds"
        )
    base = run.identity.name
    action: Action = "rollback" if params is None else "reembed"
    left = tuple(sorted({*run.reembeds, *reembeds}))
    parent = Parent(lineage=run.owner(round_).lineage, round=round_, reembeds=left)
    why = reason or f"to round {round_}"
    return _create(root, base, next_lineage(root, base), params or run.params, parent, action, why, run)


def undo(root: Path, name: str) -> Run:
    """Return to the lineage before the last rollback, reembed or fork.

    Raises:
        SetupError: there is nothing to undo.
    """
    name = open_run(root, name).identity.name  # a lineage may be named
    before = heads.before(root, name)
    if before is None:
        raise SetupError(f"run `{name}` has no rollback or fork to undo", "an opened lineage", "opd rounds")
    heads.append(root, name, Head(lineage=before, action="undo"))
    return open_run(root, name)


def _create(
    root: Path,
    name: str,
    lineage: str,
    params: Params,
    parent: Parent | None,
    action: Action,
    reason: str = "",
    source: Run | None = None,
) -> Run:
    kept = parent.round if parent else 0
    along, left = _edits(source, kept, action) if source is not None else ([], [])
    draft = RunIdentity(name=name, lineage=lineage, parent=parent, params={}, params_digest="")
    opened = Run(root, _write_identity(root, draft, params))
    if along:  # killed from here on, the lineage's name is taken, and it is never the current one
        lines = "".join(f"{canonical_json(edit)}\n" for edit in along)
        write_text(edits.file_of(opened.paths.run, kept + 1), lines)
    heads.append(root, name, Head(lineage=lineage, action=action, reason=reason))
    edits.say_left(left, lineage, kept)
    return opened


def _edits(run: Run, kept: int, action: Action) -> tuple[list[edits.Edit], list[edits.Edit]]:
    """Edits by hand that the memory of round `kept` lacks: for the next round of the new lineage, and left behind.

    A rollback takes back what entered the rounds behind `kept`; a fork plays them anew with it.
    """
    start, now = run.held(kept + 1), run.held(len(run.finished_rounds()) + 1)
    # Where the memory stays, so does all that an undo can name.
    memory = None if start == now else run.owner(start).version(start) / "memory"
    return edits.sorted_out(run.edit_files(start), kept, now if action == "rollback" else 0, memory)


def _write_identity(root: Path, identity: RunIdentity, params: Params) -> RunIdentity:
    tree = params.model_dump(mode="json")
    identity = identity.model_copy(update={"params": tree, "params_digest": params.digest()})
    paths = RunPaths(root, identity.lineage)
    write_text(paths.params, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    write_text(paths.identity, canonical_json(identity) + "\n")
    return identity
