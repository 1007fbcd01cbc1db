"""Frozen, versioned records that everyone speaks.

Nothing here imports torch, Prefect or a store. `Record` forbids unknown fields, so a misspelt
key is an error, and `canonical_json` gives the one byte form that digests are taken of.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
NAMESPACE = uuid.UUID("6f1c1d1e-5d0a-5e7e-9b57-0bd0e7013e75")

Split = Literal["seed", "deploy-train", "deploy-val", "deploy-test", "novel-val", "novel-test"]
SPLITS: tuple[Split, ...] = ("seed", "deploy-train", "deploy-val", "deploy-test", "novel-val", "novel-test")
Level = Literal["trajectory", "tip", "skill", "tool"]
LEVELS: tuple[Level, ...] = ("trajectory", "tip", "skill", "tool")
Ability = Literal["select", "act", "write", "maintain"]
ABILITIES: tuple[Ability, ...] = ("select", "act", "write", "maintain")
MAINTAIN = "maintain"
"""Task id, domain, scope and group of a maintenance row: it is no rollout of any task."""


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def canonical_json(value: Any) -> str:
    """The one byte form of a record or plain value: sorted keys, no spaces, UTF-8, no NaN."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(lines: Iterable[str | bytes]) -> str:
    """sha256 hex over length-prefixed lines, so that no two sequences share a digest by concatenation."""
    sha = hashlib.sha256()
    for line in lines:
        raw = line.encode() if isinstance(line, str) else line
        sha.update(len(raw).to_bytes(8, "big"))
        sha.update(raw)
    return sha.hexdigest()


def uuid5_of(*parts: str) -> str:
    """Deterministic id from its parts; the same content gives the same id on every machine."""
    return uuid.uuid5(NAMESPACE, "\x1f".join(parts)).hex


# ── tasks and environments ────────────────────────────────────────────────────────────────────


class Task(Record):
    """One task. `text` and `scope` are what the agent knows; `family` is latent and `gold` secret.

    `family` serves splits, attribution groups and clustered intervals only; `gold` is read by the
    environment alone. Neither may reach a prompt, a query, a filter or the memory.
    """

    task_id: str
    domain: str
    scope: str
    family: str
    split: Split
    text: str
    gold: dict[str, Any] = Field(default_factory=dict)


class Step(Record):
    """What an environment answers to one action. `info["success"]` is always present."""

    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = Field(default_factory=dict)


class Fact(Record):
    """A hidden convention: in `scope`, `key` means `value`. Kept as a tuple, never as prose."""

    scope: str
    key: str
    value: str


# ── prompts and replies ───────────────────────────────────────────────────────────────────────

SegmentKind = Literal["text", "memory", "history", "hindsight", "reply"]


class Segment(Record):
    """A piece of a message that is tokenised on its own.

    Student and teacher prompts differ by `hindsight` segments only, hence are token-identical
    elsewhere. All segment text is data: special tokens inside it are split, never obeyed.
    `token_ids`, when present, are used verbatim (a served reply in the history).
    """

    kind: SegmentKind = "text"
    text: str = ""
    token_ids: tuple[int, ...] | None = None


class Message(Record):
    """One chat message, made of segments."""

    role: Literal["system", "user", "assistant"]
    segments: tuple[Segment, ...]


class Prompt(Record):
    """One ability's prompt. The last message is always the user's."""

    ability: Ability
    messages: tuple[Message, ...]


class Sampling(Record):
    """temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 64


class GenerationRequest(Record):
    """What an episode yields; a driver answers it with a `Reply`. `seed` is counter-based."""

    prompt: Prompt
    sampling: Sampling
    seed: int


class Reply(Record):
    """What was served: exact token ids in and out, and the log-probability of each reply token (nats).

    `token_ids` includes the end token when it was sampled. Text-only endpoints leave the ids and
    log-probabilities empty: such replies act and write but give no trainable rows. They say how many
    tokens the server counted; `reasoning` is what its model thought, not said.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    finish: Literal["stop", "length"] = "stop"
    policy_version: str = ""
    reasoning: str = ""
    n_prompt_tokens: int = 0
    n_reply_tokens: int = 0


# ── memory ────────────────────────────────────────────────────────────────────────────────────


class TrajectoryStep(Record):
    observation: str
    action: str
    result: str
    reward: float


class TrajectoryContent(Record):
    level: Literal["trajectory"] = "trajectory"
    task: str
    steps: tuple[TrajectoryStep, ...]
    outcome: Literal["success", "partial", "failure"]
    episode_return: float
    learnings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class TipContent(Record):
    """`trigger` is the key, `text` the value, of a fact when the tip carries one."""

    level: Literal["tip"] = "tip"
    text: str
    trigger: str
    severity: Literal["info", "warning", "critical"] = "info"


class SkillContent(Record):
    level: Literal["skill"] = "skill"
    description: str
    technique: str = ""
    preconditions: str = ""
    steps: tuple[str, ...]


class ToolContent(Record):
    level: Literal["tool"] = "tool"
    name: str
    language: str
    code: str
    input_description: str = ""
    output_description: str = ""


Content = Annotated[TrajectoryContent | TipContent | SkillContent | ToolContent, Field(discriminator="level")]


class Proposal(Record):
    """A new entry as an episode proposes it; the committer turns it into an `Entry`."""

    domain: str
    scope: str
    content: Content
    source_episodes: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()


class Entry(Record):
    """A memory entry m. Levels share these fields; `content` is typed by level.

    `confirmed_round` is set when something that a newer entry contradicts is learnt again: it holds anew from then on.
    An entry without it has the bytes that it had before there was such a field.
    """

    schema_version: int = SCHEMA_VERSION
    entry_id: str
    domain: str
    scope: str
    content: Content
    source_episodes: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    created_round: int
    confirmed_round: int | None = Field(default=None, exclude_if=lambda value: value is None)
    usage_count: int = 0
    success_count: int = 0
    last_used_round: int | None = None
    status: Literal["live", "retired", "erased"] = "live"
    retired_round: int | None = None
    retired_by: str = ""

    @property
    def level(self) -> Level:
        return self.content.level

    @property
    def learnt_round(self) -> int:
        """The round since which it holds: of entries that contradict each other the newest one does."""
        return self.created_round if self.confirmed_round is None else self.confirmed_round


class Candidate(Record):
    """An entry as shown to the selector: its handle is its 1-based place in the shown list."""

    handle: int
    entry_id: str
    score: float


# ── the ledger ────────────────────────────────────────────────────────────────────────────────


class CallRecord(Record):
    """One generation as it was served; enough to train on later without re-rendering."""

    ability: Ability
    turn: int
    prompt_token_ids: tuple[int, ...]
    reply_token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reply_text: str
    finish: Literal["stop", "length"]


class TurnRecord(Record):
    """One act turn: the state's observation, the parsed action, what came back; `called`: the tool entry it called."""

    observation: str
    action: str
    result: str
    reward: float
    parsed: bool = True
    called: str | None = None


class LedgerRow(Record):
    """One row per *rollout id*. Telemetry (seconds) and the lineage enter no digest: a round that is
    replayed in another lineage must have the same bytes, so neither stands in a row.

    `propensities[entry_id]` is the probability with which a selected entry was kept by randomised
    inclusion; `withheld` lists those that were dropped.
    """

    schema_version: int = SCHEMA_VERSION
    rollout_id: str
    round: int
    wave: int
    task_id: str
    domain: str
    scope: str
    group: str
    task_text: str
    candidates: tuple[Candidate, ...]
    selected: tuple[str, ...]
    withheld: tuple[str, ...] = ()
    injected: tuple[str, ...]
    propensities: dict[str, float] = Field(default_factory=dict)
    select_fallback: bool = False
    created: tuple[str, ...] = ()
    episode_return: float
    success: bool
    turns: tuple[TurnRecord, ...]
    calls: tuple[CallRecord, ...]
    n_prompt_tokens: int
    n_reply_tokens: int
    policy_version: str
    renderer: str


class Episode(Record):
    """What a finished episode hands over: its ledger row and the entries it proposes, unapplied."""

    row: LedgerRow
    proposals: tuple[Proposal, ...] = ()
    rejected: tuple[str, ...] = ()
    seconds: float = 0.0


class MemoryOperation(Record):
    """One operation on the memory, with what it needs to be undone.

    `created` are entries that a merge made, or, of an `undo`, retired entries that it brings back.
    """

    operation_id: str
    kind: Literal["merge", "delete", "undo"]
    round: int
    retired: tuple[str, ...]
    created: tuple[str, ...] = ()


class Attribution(Record):
    """V(m) with its evidence. `value` is None where there is no evidence, never 0.0."""

    schema_version: int = SCHEMA_VERSION
    variant: str = "paper"
    entry_id: str
    value: float | None
    low: float | None
    high: float | None
    advantage: float | None
    n_selected: int
    n_withheld: int
    per_group: dict[str, float] = Field(default_factory=dict)


class Example(Record):
    """One training example: the student's and the teacher's prompt, equal outside the hindsight.

    The reply is not stored: it is sampled from the current student during training.
    `student_ids` / `teacher_ids` are rendered prompts; `hindsight_spans` are [start, end) in
    teacher_ids. `group` and `rollout_id` are for audits and balancing only. `with_memory`: of an act example,
    whether the prompts hold the memories that were served.
    """

    schema_version: int = SCHEMA_VERSION
    example_id: str
    ability: Ability
    rollout_id: str
    group: str
    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    hindsight_spans: tuple[tuple[int, int], ...]
    max_new_tokens: int
    trust: float = 1.0
    with_memory: bool = Field(default=False, exclude_if=lambda value: not value)
