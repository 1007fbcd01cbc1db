"""Other people's trajectories (and tips, skills, tools) as proposals for the memory. One JSON object a line.

The format stands in docs/import.md. Every line is checked on its own: what cannot be read is listed with
its line and its reason, the rest is taken. Nothing in a file is executed or obeyed; it is data.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from opd_evolver.errors import SetupError
from opd_evolver.memory.acceptance import fault
from opd_evolver.params import nearest
from opd_evolver.records import Content, Proposal, Record, TrajectoryContent, TrajectoryStep, canonical_json, digest_of

MAX_LINE_BYTES = 1_000_000
MAX_LABEL_CHARS = 200
IMPORTED = "import:"
"""Start of every import's source episode: no rollout wrote the entry first."""
_CONTENT: TypeAdapter[Content] = TypeAdapter(Content)


class Rejected(Record):
    """A line that was not taken. `line` counts from 1."""

    line: int
    reason: str


class Import(Record):
    """What a file holds: proposals in its order, and the lines that could not be read."""

    proposals: tuple[Proposal, ...]
    rejected: tuple[Rejected, ...]
    repeated: int


class ImportedStep(Record):
    """One step; `result` is what came back, `observation` what was seen before acting."""

    action: str = Field(min_length=1)
    observation: str = ""
    result: str = ""
    reward: float = Field(0.0, allow_inf_nan=False)


class ChatMessage(Record):
    """One message of a chat transcript; only its role and its text count."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class ImportedTrajectory(Record):
    """A trajectory line: either `steps`, or a chat transcript in `messages`.

    Attributes:
        episode_return: in [0, 1]; key `return` in the file.
        success: decides the outcome; when absent, success is a return of 1.
        source: the trajectory's name where it came from; without one a digest of the content stands for it.
    """

    level: Literal["trajectory"] = "trajectory"
    domain: str = Field(min_length=1)
    scope: str = Field(min_length=1)
    task: str = Field(min_length=1)
    steps: tuple[ImportedStep, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    episode_return: float = Field(alias="return", ge=0.0, le=1.0)
    success: bool | None = None
    learnings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    source: str = ""

    @model_validator(mode="after")
    def _has_steps(self) -> ImportedTrajectory:
        if bool(self.steps) == bool(self.messages):
            raise ValueError("give either `steps` or `messages`, and not an empty list")
        if self.messages and not steps_of_chat(self.messages):
            raise ValueError("no message of the role `assistant`")
        return self


class ImportedEntry(Record):
    """A line of another level: `content` has the fields of records.TipContent, SkillContent or ToolContent."""

    level: Literal["tip", "skill", "tool"]
    domain: str = Field(min_length=1)
    scope: str = Field(min_length=1)
    content: dict[str, Any]
    source: str = ""


def steps_of_chat(messages: Sequence[ChatMessage]) -> tuple[ImportedStep, ...]:
    """Each assistant message is an action; what stood before it is its observation, what follows its result."""
    steps: list[ImportedStep] = []
    before = ""
    for message in messages:
        if message.role == "assistant":
            if message.content.strip():
                steps.append(ImportedStep(action=message.content, observation=before))
        elif message.role != "system":
            before = message.content
            if steps and not steps[-1].result:
                steps[-1] = steps[-1].model_copy(update={"result": message.content})
    return tuple(steps)


def _trajectory(given: ImportedTrajectory) -> TrajectoryContent:
    success = given.episode_return >= 1.0 if given.success is None else given.success
    return TrajectoryContent(
        task=given.task,
        steps=tuple(
            TrajectoryStep(observation=one.observation, action=one.action, result=one.result, reward=one.reward)
            for one in (given.steps or steps_of_chat(given.messages))
        ),
        outcome="success" if success else ("partial" if given.episode_return > 0 else "failure"),
        episode_return=given.episode_return,
        learnings=given.learnings,
        tags=given.tags,
    )


def _why(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def _content(given: ImportedEntry) -> Content:
    try:
        return _CONTENT.validate_python({**given.content, "level": given.level})
    except ValidationError as error:
        raise ValueError(f"content.{_why(error)}") from None


def _label_fault(given: ImportedTrajectory | ImportedEntry) -> str | None:
    """Labels stand in prompts and listings: each is one line of letters that can be seen."""
    for name, text in (("domain", given.domain), ("scope", given.scope), ("source", given.source)):
        if len(text) > MAX_LABEL_CHARS:
            return f"too long: {name} has {len(text)} characters, at most {MAX_LABEL_CHARS}"
        if letter := next((letter for letter in text if not letter.isprintable()), None):
            return f"control characters: {name} holds U+{ord(letter):04X}"
    return None


def _proposal(tree: Any, defaults: Mapping[str, str]) -> Proposal:
    """One line's proposal; ValueError says what is wrong with it."""
    if not isinstance(tree, dict):
        raise ValueError(f"a JSON object is expected, not {type(tree).__name__}")
    tree = {**defaults, **tree}
    content: Content
    try:
        given: ImportedTrajectory | ImportedEntry
        if tree.get("level", "trajectory") == "trajectory":
            given = ImportedTrajectory.model_validate(tree)
            content = _trajectory(given)
        else:
            given = ImportedEntry.model_validate(tree)
            content = _content(given)
    except ValidationError as error:
        raise ValueError(_why(error)) from None
    if found := _label_fault(given) or fault(content):
        raise ValueError(found)
    source = IMPORTED + (given.source or digest_of([canonical_json(content)])[:12])
    return Proposal(domain=given.domain, scope=given.scope, content=content, source_episodes=(source,))


def _unwanted(found: Proposal, domains: Collection[str] | None, levels: Collection[str] | None) -> str | None:
    if domains is not None and found.domain not in domains:
        return f"domain: {found.domain} is not in environments.domains: {nearest(found.domain, domains)}"
    return f"level: {found.content.level} is off" if levels is not None and found.content.level not in levels else None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                too_long = len(line) > MAX_LINE_BYTES
                while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES + 1)
                    if not line or line.endswith(b"\n"):
                        break
                yield number, b"" if too_long else line
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}", "a file of JSON lines", f"ls -l {path}") from None


def read(
    path: Path,
    *,
    domain: str | None = None,
    scope: str | None = None,
    domains: Collection[str] | None = None,
    levels: Collection[str] | None = None,
) -> Import:
    """Reads a file of trajectories.

    Args:
        path: one JSON object a line, UTF-8; empty lines are skipped.
        domain: for lines that name none.
        scope: for lines that name none.
        domains: those of the run; what is of another could never be found. None takes all.
        levels: those that the run may write; None takes all.

    Raises:
        SetupError: the file cannot be read. Wrong lines raise nothing: they are in `rejected`.
    """
    defaults = {key: value for key, value in (("domain", domain), ("scope", scope)) if value is not None}
    proposals: dict[Proposal, None] = {}
    rejected: list[Rejected] = []
    repeated = 0
    for number, raw in _lines(path):
        if raw == b"":
            rejected.append(Rejected(line=number, reason=f"longer than {MAX_LINE_BYTES} bytes"))
            continue
        if not raw.strip():
            continue
        try:
            proposal = _proposal(json.loads(raw), defaults)
            if reason := _unwanted(proposal, domains, levels):
                raise ValueError(reason)
        except (ValueError, RecursionError) as error:
            rejected.append(Rejected(line=number, reason=" ".join(str(error).split())[:200]))
            continue
        repeated += proposal in proposals
        proposals[proposal] = None
    return Import(proposals=tuple(proposals), rejected=tuple(rejected), repeated=repeated)
