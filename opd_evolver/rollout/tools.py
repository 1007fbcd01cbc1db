"""Saved tools that the policy calls: `run <tool name> <arg …>` as an action plays what an injected entry holds.

`actions` are environment actions that the agent may take anyway, played one after another. `python`
and `bash` run in the sandbox, or in the environment when it can execute tools; a language without isolation
is shown and never run. A call that cannot be made is an observation, never an exception.
Differs: the authors' code stores tools and never calls them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from opd_evolver.console import say
from opd_evolver.environments.attempts import cut
from opd_evolver.environments.protocol import Environment, Executes
from opd_evolver.memory.acceptance import ACTIONS, parts_of
from opd_evolver.memory.levels import one_line
from opd_evolver.records import Entry, Step, ToolContent
from opd_evolver.sandbox import LANGUAGES, Language, Outcome, Sandbox, probe

CALL = "run"
UNKNOWN = "error unknown tool"
SHOWN_ONLY = "error tools are shown only"
UNSUPPORTED = "error unsupported language"
TOO_MUCH = "error too many arguments"
RESULT_WORDS = 48
MAX_ARGUMENT_CHARS = 4096
PLACEHOLDER = re.compile(r"\$([1-9][0-9]?)")
SandboxSource = Callable[[], Sandbox | None]


class Called(NamedTuple):
    """What one call came to.

    Attributes:
        step: what goes back to the policy; rewards of all actions summed.
        n_steps: environment steps it took of the budget, at least 1.
        entry_id: the tool's entry; None when there is no such tool.
    """

    step: Step
    n_steps: int = 1
    entry_id: str | None = None


def is_call(action: str) -> bool:
    """Whether an action calls a tool instead of the environment."""
    return action.split(maxsplit=1)[:1] == [CALL]


def find(action: str, injected: Sequence[Entry], scope: str = "") -> tuple[Entry, tuple[str, ...]] | None:
    """The called tool and its arguments: words, or in quotes as a shell reads them.

    The longest name wins, then an entry of the task's scope, then the newest, then the first injected.
    """
    words = action.split()[1:]
    best: tuple[int, bool, int, Entry] | None = None
    for entry in injected:
        if isinstance(entry.content, ToolContent):
            name = one_line(entry.content.name).split()
            fits = bool(name) and words[: len(name)] == name
            rank = (len(name), entry.scope == scope, entry.learnt_round)
            if fits and (best is None or rank > best[:3]):
                best = (*rank, entry)
    return None if best is None else (best[3], _arguments(action.split(maxsplit=1 + best[0])[1 + best[0] :]))


def _arguments(rest: list[str]) -> tuple[str, ...]:
    """The arguments in what follows the name, if anything does; with a quote that never ends each word is one."""
    text = "".join(rest)
    if any(mark in text for mark in "'\"\\"):
        try:
            return tuple(shlex.split(text))
        except ValueError:
            pass
    return tuple(text.split())


def _failed(observation: str, entry: Entry | None = None) -> Called:
    return Called(Step(observation=observation), 1, entry.entry_id if entry else None)


def filled(code: str, arguments: tuple[str, ...]) -> tuple[list[str], str]:
    """The actions of a tool with their placeholders filled, and what is wrong with the call: empty where nothing."""
    wanted = [int(number) for number in PLACEHOLDER.findall(code)]
    if missing := [number for number in wanted if number > len(arguments)]:
        return [], f"error missing argument ${min(missing)}"
    parts = [part for part in parts_of(code) if part]
    actions = [PLACEHOLDER.sub(lambda found: arguments[int(found.group(1)) - 1], part) for part in parts]
    return actions, "" if actions else "error empty tool"


def _play_actions(env: Environment, entry: Entry, code: str, arguments: tuple[str, ...], steps_left: int) -> Called:
    """Play the actions until the episode or the budget ends."""
    actions, wrong = filled(code, arguments)
    reward, n_steps, step = 0.0, 0, Step(observation=wrong)
    for action in actions[:steps_left]:
        step = env.step(action)
        reward += step.reward
        n_steps += 1
        if step.terminated or step.truncated:
            break
    return Called(step.model_copy(update={"reward": reward}), max(1, n_steps), entry.entry_id)


def observation_of(outcome: Outcome) -> str:
    """What a run in the sandbox says to the policy: its output in one line, cut; or why it gave none."""
    if outcome.timed_out or outcome.truncated:
        return f"error {outcome.killed_by}"
    said = outcome.stdout
    if outcome.exit_code != 0:
        last = outcome.stderr.strip().splitlines()[-1:]
        said = " ".join(["error", outcome.killed_by or f"exit {outcome.exit_code}", *last])
    words = one_line("".join(letter if letter.isprintable() else " " for letter in said)).split()
    return cut(words, RESULT_WORDS) or "done"


@lru_cache(maxsize=1)
def _tell_shown_only() -> None:
    """Once a process."""
    say(f"warning: saved tools in a language without isolation are shown, not run: {probe().line()}")


def _execute(
    env: Environment | None,
    entry: Entry,
    content: ToolContent,
    language: Language,
    arguments: tuple[str, ...],
    source: SandboxSource,
) -> Called:
    """Run code isolated: by the environment where it can, else in the sandbox."""
    sandbox = source()
    if sandbox is None or language not in sandbox.languages:
        _tell_shown_only()
        return _failed(SHOWN_ONLY, entry)
    if sum(map(len, arguments)) > MAX_ARGUMENT_CHARS or any("\0" in word for word in arguments):
        return _failed(TOO_MUCH, entry)
    if isinstance(env, Executes):
        return Called(env.execute(content, arguments), 1, entry.entry_id)
    outcome = sandbox.run(language, content.code, arguments)
    return Called(Step(observation=observation_of(outcome)), 1, entry.entry_id)


def call(
    action: str,
    env: Environment | None,
    injected: Sequence[Entry],
    *,
    steps_left: int,
    sandbox: SandboxSource,
    scope: str = "",
) -> Called:
    """Play a call.

    Args:
        action: begins with `run`.
        env: in the running episode; None outside of one, where tools made of actions are unsupported.
        injected: the entries the policy was shown; no other tool can be called.
        steps_left: environment steps left of the budget; more actions are not played.
        sandbox: gives the machine's sandbox, or None without isolation; asked only when code is to run.
            A language that it does not isolate is shown only.
        scope: the task's: of tools with the same name its own is meant.

    Raises:
        OutageError: the environment's engine or the sandbox is down.
    """
    found = find(action, injected, scope)
    if found is None:
        return _failed(UNKNOWN)
    entry, arguments = found
    content = entry.content
    assert isinstance(content, ToolContent)
    if content.language == ACTIONS and env is not None:
        return _play_actions(env, entry, content.code, arguments, steps_left)
    for language in LANGUAGES:
        if content.language == language:
            return _execute(env, entry, content, language, arguments, sandbox)
    return _failed(UNSUPPORTED, entry)
