"""The evolved agent in a program of one's own: the policy and the memory of a round, loaded together.

    with Agent.load("champion") as agent:
        session = agent.session("boru cleanup s1 …", domain="sql", scope="boru")
        action, done = session.act(), False
        while not done:
            observation, done = my_world(action)
            action = session.act(observation)

It reads the memory and never writes to it; experience is stored by runs alone.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from opd_evolver.abilities import dialects
from opd_evolver.environments.protocol import Environment
from opd_evolver.errors import SetupError
from opd_evolver.memory.acceptance import ACTIONS
from opd_evolver.memory.snapshot import restore
from opd_evolver.memory.store import Memory
from opd_evolver.params import Params
from opd_evolver.policy.protocol import Policy
from opd_evolver.policy.registry import open_policy
from opd_evolver.records import Entry, Episode, GenerationRequest, Message, Prompt, Reply, Task, ToolContent
from opd_evolver.rollout import tools
from opd_evolver.rollout.budget import policy_count
from opd_evolver.rollout.calls import Calls
from opd_evolver.rollout.driver import drive
from opd_evolver.rollout.episode import episode, select
from opd_evolver.rollout.settings import EpisodeSettings, Rollout
from opd_evolver.sandbox import available
from opd_evolver.settings import load_settings
from opd_evolver.steps import export

Result = TypeVar("Result")


class Agent:
    """A policy with its memory, greedy and read-only. A context manager; `close` does the same.

    Args:
        policy: serves every ability.
        memory: what it reads; None acts alone.
        params: the run's: dialect, budgets, retrieval.
    """

    def __init__(self, policy: Policy, memory: Memory | None, params: Params) -> None:
        self.policy, self.memory, self.params = policy, memory, params
        self.settings = EpisodeSettings.of(params, read=memory is not None, write=False, greedy=True)
        self.count = policy_count(self.settings.budget_unit, policy)
        self._held = ExitStack()
        if memory is not None:
            self._held.callback(memory.close)

    @classmethod
    def load(cls, what: str | Path = "champion", *, run: str = "default", device: str | None = None) -> Self:
        """The agent of a run, or one that `opd export` wrote.

        Args:
            what: `champion`: what the next round of `run` would start from; `LINEAGE:ROUND`: that round; else a folder
                that `opd export` wrote.
            run: whose champion.
            device: torch device; default OPD_DEVICE.

        Raises:
            SetupError: no such run, round or folder.
            CorruptionError: policy or memory do not match their digests.
        """
        found = export.locate(what, run)
        params, memory = found.params, None
        with ExitStack() as held:
            if found.memory is not None:
                live = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="opd-agent-"))) / "live"
                embedded = params.memory.model_copy(update={"store": "embedded"})
                restore(found.memory, live, embedded, found.reembeds)
                memory = held.enter_context(Memory.open(live, embedded, read_only=True))
            policy = open_policy(
                params.policy, found.policy, device or load_settings().device, version=found.policy_digest[:16]
            )
            agent = cls(policy, memory, params)
            agent._held = held.pop_all()
        return agent

    def session(self, text: str, *, domain: str, scope: str = "") -> Session:
        """A task of one's own program, acted on one observation at a time.

        Args:
            text: the task as the agent is told it.
            domain: whose memories are read.
            scope: what the agent works on (a database, a service, a house); narrows the memories read.
        """
        return Session(self, _task(text, domain, scope))

    def act(self, text: str, observation: str = "", *, domain: str, scope: str = "") -> str:
        """The first action for a task; `session` goes on from there."""
        return self.session(text, domain=domain, scope=scope).act(observation)

    def play(self, environment: Environment, task: Task) -> Episode:
        """A whole task in an environment of the protocol, which stays open.

        Raises:
            OutageError: the environment or the policy is down.
        """
        rollout = _rollout(task)
        return self.answered(
            lambda: episode(rollout, environment, self.memory, self.settings, count=self.count, sandbox=available)
        )

    def answered(self, start: Callable[[], Generator[GenerationRequest, Reply, Result]]) -> Result:
        """What a generator of requests comes to, its requests answered by the policy."""
        [result] = drive(self.policy, [start], 1, outage_retries=self.params.fast.outage_retries)
        return result

    def close(self) -> None:
        """Closes the memory and removes its copy; again is a no-op."""
        self._held.close()
        self.memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Session:
    """One task: entries are selected at the first observation, then each observation gets an action.

    A saved tool that the policy calls is played from here: one made of actions comes back action by action, its last
    observation goes to the policy; code runs in the sandbox and takes a step without an action.

    Attributes:
        memories: the selected entries, once the first action is there.
        replies: what the policy said, one reply a turn.
        n_steps: actions and calls so far; `fast.max_steps` is the most.
    """

    def __init__(self, agent: Agent, task: Task) -> None:
        self.memories: tuple[Entry, ...] = ()
        self.replies: list[str] = []
        self.n_steps = 0
        self._agent, self._task, self._rollout = agent, task, _rollout(task)
        self._speak = dialects.of(agent.settings.dialect).act
        self._calls = Calls(self._rollout.rollout_id, 0, agent.settings.seed)
        self._first: Message | None = None
        self._history: list[Message] = []
        self._waiting: Reply | None = None
        self._planned: list[str] = []

    def act(self, observation: str = "") -> str:
        """The next action. After an outage the same call again goes on where it broke off.

        Args:
            observation: what the last action led to; before the first one, what is seen at the start.

        Raises:
            SetupError: `fast.max_steps` actions were taken.
            OutageError: an endpoint stayed down.
        """
        if self._planned:
            return self._taken(self._planned.pop(0))
        if self._first is None:
            self._first = self._begin(observation)
        elif self._waiting is not None:
            self._seen(self._waiting, observation)
            self._waiting = None  # after an outage the same call goes on from here
        while True:
            self._need_steps()
            reply = self._agent.answered(self._asked)
            self.replies.append(reply.text)
            action, parsed = self._speak.parse(reply.text)
            if not (parsed and tools.is_call(action)):
                self._waiting = reply
                return self._taken(action)
            planned = self._called(reply, action)
            if planned:
                self._waiting, self._planned = reply, planned[1:]
                return self._taken(planned[0])

    def _begin(self, observation: str) -> Message:
        settings, memory, count = self._agent.settings, self._agent.memory, self._agent.count
        found = self._agent.answered(lambda: select(self._rollout, memory, settings, self._calls, count))
        self.memories = found.injected
        return self._speak.first_message(
            self._task.text, observation, self.memories, token_budget=settings.entry_token_budget, count=count
        )

    def _asked(self) -> Generator[GenerationRequest, Reply, Reply]:
        assert self._first is not None
        prompt: Prompt = self._speak.prompt(self._first, self._history)
        return self._calls.ask("act", len(self.replies), prompt, self._agent.settings.act_sampling)

    def _called(self, reply: Reply, action: str) -> list[str]:
        """The actions of a called tool; none where it was answered here and the policy goes on."""
        left = self._agent.settings.max_steps - self.n_steps
        found = tools.find(action, self.memories, self._task.scope)
        if found is not None and isinstance(found[0].content, ToolContent) and found[0].content.language == ACTIONS:
            actions, wrong = tools.filled(found[0].content.code, found[1])
            if actions:
                return actions[:left]
            said = wrong
        else:
            said = tools.call(
                action, None, self.memories, steps_left=left, sandbox=available, scope=self._task.scope
            ).step.observation
        self.n_steps += 1
        self._seen(reply, said)
        return []

    def _seen(self, reply: Reply, observation: str) -> None:
        self._history += [self._speak.reply_message(reply), self._speak.observation_message(observation)]

    def _need_steps(self) -> None:
        if self.n_steps >= self._agent.settings.max_steps:
            raise SetupError(
                f"{self.n_steps} steps were taken in this session",
                f"at most fast.max_steps = {self._agent.settings.max_steps}",
                "begin another session",
            )

    def _taken(self, action: str) -> str:
        self.n_steps += 1
        return action


def _task(text: str, domain: str, scope: str) -> Task:
    fields: dict[str, Any] = {"family": "", "split": "deploy-test"}
    return Task(task_id=f"own-{uuid.uuid4().hex[:12]}", domain=domain, scope=scope, text=text, **fields)


def _rollout(task: Task) -> Rollout:
    return Rollout(rollout_id=f"agent-{uuid.uuid4().hex[:12]}", round=0, wave=0, task=task)
