"""A small fake world and a scripted agent that speaks the dialect: the only mocks of the fast loop's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opd_evolver.abilities.dialect import SEPARATOR
from opd_evolver.environments.protocol import Environment
from opd_evolver.errors import OutageError
from opd_evolver.params import Params, merge
from opd_evolver.policy.scripted import ScriptedPolicy, text_of
from opd_evolver.records import Entry, GenerationRequest, Prompt, Reply, Split, Step, Task, TipContent
from opd_evolver.rollout.settings import Rollout

SQL_OPS = {"count": "count ( * )", "sum": "sum ( amount )", "max": "max ( amount )", "min": "min ( amount )"}
PREPARATIONS = ("otp", "ping", "lock", "scan", "sync", "auth", "note", "sign", "seal", "tag")


def task(number: int, *, domain: str = "toy", scope: str = "zora", family: str = "f1") -> Task:
    return Task(
        task_id=f"{domain}-{number:03d}",
        domain=domain,
        scope=scope,
        family=family,
        split="deploy-train",
        text=f"{scope} count late",
        gold={"answer": "7"},
    )


def rollout(number: int = 1, round: int = 1, wave: int = 0, **fields: str) -> Rollout:
    made = task(number, **fields)
    return Rollout(rollout_id=f"r{round:03d}/w{wave:02d}/{made.task_id}/k1", round=round, wave=wave, task=made)


def tip(key: str, value: str, *, scope: str = "zora", domain: str = "toy", round: int = 1, **fields: object) -> Entry:
    return Entry(
        entry_id=f"{domain}-{scope}-{key}-{value}",
        domain=domain,
        scope=scope,
        content=TipContent(trigger=key, text=value),
        created_round=round,
        **fields,  # type: ignore[arg-type]
    )


class Toy:
    """Right when the action ends in the gold answer; two attempts. `outages` counts down over all instances."""

    domain = "toy"

    def __init__(self, outages: list[int] | None = None, log: list[str] | None = None) -> None:
        self.outages = outages if outages is not None else [0]
        self.log = log if log is not None else []
        self.closed = False
        self._task: Task | None = None
        self._left = 2

    def tasks(self, split: Split, n: int, seed: int = 0) -> Sequence[Task]:
        return [task(number) for number in range(n)]

    def reset(self, task: Task) -> str:
        self._task, self._left = task, 2
        return ""

    def step(self, action: str) -> Step:
        self.log.append(action)
        if self.outages[0] > 0:
            self.outages[0] -= 1
            raise OutageError("toy is down", "toy up", "start toy")
        assert self._task is not None
        self._left -= 1
        right = action.endswith(self._task.gold["answer"])
        return Step(
            observation="ok 12" if right else "no 3",
            reward=float(right),
            terminated=right or self._left == 0,
            info={"success": right},
        )

    def close(self) -> None:
        self.closed = True


class Stormy:
    """A real environment whose engine is down now and then."""

    def __init__(self, env: Environment, every: int, count: list[int]) -> None:
        self._env, self._every, self._count = env, every, count
        self.domain = env.domain

    def tasks(self, split: str, n: int, seed: int = 0) -> Sequence[Task]:
        return self._env.tasks(split, n, seed)  # type: ignore[arg-type]

    def _weather(self) -> None:
        self._count[0] += 1
        if self._count[0] % self._every == 0:
            raise OutageError("engine down")

    def reset(self, task: Task) -> str:
        self._weather()
        return self._env.reset(task)

    def step(self, action: str) -> Step:
        self._weather()
        return self._env.step(action)

    def close(self) -> None:
        self._env.close()


class Shelf:
    """A memory view over a fixed list; keeps the queries."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self.held = list(entries)
        self.queries: list[str] = []

    def entries(self) -> list[Entry]:
        return sorted(self.held, key=lambda entry: entry.entry_id)

    def retrieve(
        self, query: str, *, domain: str, scope: str, limit: int, alpha: float, scope_filter: bool
    ) -> Sequence[tuple[Entry, float]]:
        self.queries.append(query)
        fits = [entry for entry in self.held if entry.domain == domain and (not scope_filter or entry.scope == scope)]
        return [(entry, 1.0 - place / 100) for place, entry in enumerate(fits)][:limit]


class Recorder(ScriptedPolicy):
    """Keeps every batch it was asked."""

    def __init__(self, responder: Callable[[Prompt, GenerationRequest], str], version: str = "scripted") -> None:
        super().__init__(responder, version)
        self.batches: list[list[GenerationRequest]] = []
        self.replies: list[Reply] = []

    @property
    def requests(self) -> list[GenerationRequest]:
        return [request for batch in self.batches for request in batch]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        self.batches.append(list(requests))
        replies = super().generate(requests)
        self.replies += replies
        return replies


# ── the scripted agent: reads prompts only ────────────────────────────────────────────────────


def _question(prompt: Prompt) -> list[str]:
    """Words of the current sub-question: scope and phrase."""
    first = " ".join(segment.text for segment in prompt.messages[0].segments)
    asked = first.split(" task ", 1)[1].split(" then ")[0].split()
    for message in prompt.messages[1:]:
        said = " ".join(segment.text for segment in message.segments)
        if message.role == "user" and " next " in said:
            asked = said.split(" next ", 1)[1].split()
    return asked


def _key(question: Sequence[str]) -> str:
    return question[2] if question[1] in SQL_OPS else question[1]


def _act(prompt: Prompt, request: GenerationRequest) -> str:
    question = _question(prompt)
    scope, key = question[0], _key(question)
    known = {}
    for segment in prompt.messages[0].segments:
        if segment.kind == "memory":
            for part in segment.text.split(SEPARATOR):
                words = part.split()
                if len(words) == 4 and words[0] == scope:
                    known[words[1]] = (words[2], words[3])
    is_sql = question[1] in SQL_OPS
    guess = str(request.seed % 10) if is_sql else PREPARATIONS[request.seed % 10]
    origin, value = known.get(key, ("guess", guess))
    if is_sql:
        action = f"select {SQL_OPS[question[1]]} from jobs where state = {value}"
    else:
        action = f"call {value} call {key} {question[2]}"
    return f"{scope} {key} {origin} {value} do {action}"


def _select(prompt: Prompt) -> str:
    text = text_of(prompt)
    parts = text.split(SEPARATOR)
    head = parts[0].removeprefix("select ").removesuffix(" |").strip()
    scope = head.split()[0]
    handles = {part.split()[1]: part.split()[2] for part in parts[1:] if len(part.split()) == 5}
    chosen = []
    for number, phrase in enumerate(head.split(" then ")):
        question = phrase.split() if number == 0 else [scope, *phrase.split()]
        key = _key(question)
        chosen.append(f"{scope} {key} {handles.get(key, 'none')}")
    return " ".join(chosen)


def _write(prompt: Prompt) -> str:
    tips = []
    for part in text_of(prompt).split(SEPARATOR.strip()):
        reply, got, result = part.partition(" got ")
        words = reply.split()
        if got and result.split()[:1] == ["ok"] and len(words) > 3 and words[2] == "guess":
            tips.append(f"tip {words[1]} {words[3]}")
    return " | ".join(tips) or "none"


def agent(prompt: Prompt, request: GenerationRequest) -> str:
    """Selects by key, recites what it was given or guesses, and writes down guesses that held."""
    if prompt.ability == "act":
        return _act(prompt, request)
    if prompt.ability == "select":
        return _select(prompt)
    if prompt.ability == "write":
        return _write(prompt)
    return "finish"


def small(**overrides: object) -> Params:
    """Parameters of a quick epoch."""
    base = {
        "fast.tasks_per_domain": 6,
        "fast.rollouts_per_task": 2,
        "fast.wave_tasks": 6,
        "fast.microbatch_rollouts": 5,
        "fast.max_steps": 6,
        "fast.maintain_every_tasks": 8,
        "fast.maintain_max_steps": 3,
        "memory.scope_filter": True,
    }
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return merge(Params(), {**base, **changed}, "test")
