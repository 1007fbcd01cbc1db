"""Saved tools that the policy calls: actions in the world, code in the sandbox, and never an exception."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rollout_world import Shelf, rollout, small

from opd_evolver.abilities import dialects
from opd_evolver.environments.protocol import Environment, Executes
from opd_evolver.errors import OutageError
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.policy.thinking import without_thinking
from opd_evolver.records import Entry, Episode, Split, Step, Task, ToolContent, TurnRecord
from opd_evolver.rollout import tools
from opd_evolver.rollout.episode import episode
from opd_evolver.rollout.settings import EpisodeSettings
from opd_evolver.sandbox import Limits, Outcome, Sandbox, available, probe

BASE = EpisodeSettings.of(small(fast__withhold_probability=0.0, fast__max_steps=6), write=False)


def tool(code: str, language: str = "actions", name: str = "report", round: int = 1) -> Entry:
    content = ToolContent(name=name, language=language, code=code)
    return Entry(
        entry_id=f"{name}-{language}-r{round}", domain="toy", scope="zora", content=content, created_round=round
    )


class Desk:
    """Rewards every action but `bad`; `submit` ends it, won when `pay 7` came before."""

    domain = "toy"

    def __init__(self) -> None:
        self.log: list[str] = []

    def tasks(self, split: Split, n: int, seed: int = 0) -> Sequence[Task]:
        return []

    def reset(self, task: Task) -> str:
        self.log.clear()
        return ""

    def step(self, action: str) -> Step:
        self.log.append(action)
        ends = action == "submit"
        won = ends and "pay 7" in self.log
        reward = 0.0 if action.startswith("bad") else 0.25
        return Step(observation=f"ok {action}", reward=reward, terminated=ends, info={"success": won})

    def close(self) -> None:
        self.log.clear()


class Shop(Desk):
    """A world that executes tools itself."""

    def __init__(self) -> None:
        super().__init__()
        self.executed: list[tuple[str, tuple[str, ...]]] = []

    def execute(self, tool: ToolContent, arguments: tuple[str, ...]) -> Step:
        self.executed.append((tool.name, arguments))
        return Step(observation="done by the shop", reward=0.5, terminated=True, info={"success": True})


class Scripted(Sandbox):
    """A sandbox that runs nothing: keeps what it was asked and answers as told."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__("namespaces")
        self.outcome = outcome
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []

    def run(self, language, code, arguments=(), *, files=None, limits: Limits | None = None) -> Outcome:  # type: ignore[no-untyped-def]
        self.asked.append((language, code, tuple(arguments)))
        return self.outcome


def play(
    actions: Sequence[str],
    entries: Sequence[Entry],
    env: Environment | None = None,
    sandbox: tools.SandboxSource = lambda: None,
    settings: EpisodeSettings = BASE,
) -> Episode:
    said = iter(actions)
    names = " ".join(f"h{number}" for number in range(1, len(entries) + 1))

    def reply(prompt: object, request: object) -> str:
        ability = request.prompt.ability  # type: ignore[attr-defined]
        return (names or "none") if ability == "select" else f"do {next(said)}"

    policy = ScriptedPolicy(reply)  # type: ignore[arg-type]
    run = episode(rollout(), env or Desk(), Shelf(list(entries)), settings, sandbox=sandbox)
    try:
        request = next(run)
        while True:
            request = run.send(policy.generate([request])[0])
    except StopIteration as stop:
        made: Episode = stop.value
        return made


def first(actions: Sequence[str], entries: Sequence[Entry], **fields: object) -> TurnRecord:
    return play(actions, entries, **fields).row.turns[0]  # type: ignore[arg-type]


def test_actions_are_played_with_their_arguments() -> None:
    env = Desk()
    done = play(["run report 7 now"], [tool("open $2 ; pay $1 ; submit")], env)
    assert env.log == ["open now", "pay 7", "submit"]
    [turn] = done.row.turns
    assert (turn.action, turn.result, turn.reward) == ("run report 7 now", "ok submit", 0.75)
    assert turn.called == "report-actions-r1"
    assert done.row.success and done.row.episode_return == 0.75


def test_actions_stop_when_the_episode_ends() -> None:
    env = Desk()
    play(["run report"], [tool("pay 7 ; submit ; pay 8")], env)
    assert env.log == ["pay 7", "submit"]


def test_actions_count_against_the_step_budget() -> None:
    env = Desk()
    done = play(["pay 1", "run report", "run report"], [tool("a ; b ; c")], env)
    assert env.log == ["pay 1", "a", "b", "c", "a", "b"]  # six steps, the last tool cut short
    assert len(done.row.turns) == len([call for call in done.row.calls if call.ability == "act"]) == 3


def test_an_argument_cannot_smuggle_an_action() -> None:
    env = Desk()
    play(["run report ; submit", "submit"], [tool("pay $1 ; open $2")], env)
    assert env.log == ["pay ;", "open submit", "submit"]


def test_a_missing_argument_plays_nothing_and_costs_a_turn() -> None:
    env = Desk()
    done = play(["run report 1", "submit"], [tool("open $1 ; pay $2")], env)
    assert done.row.turns[0].result == "error missing argument $2" and env.log == ["submit"]


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("run report", ()),
        ("run report 7  now ", ("7", "now")),
        ("run report 'Ann Lee' 7", ("Ann Lee", "7")),
        ('run report "Ann Lee"  x\\ y', ("Ann Lee", "x y")),
        ("run report it's 7", ("it's", "7")),
        ("run report '' 7", ("", "7")),
        ("run bob's \"own\" 'a b'", ("a b",)),
        ('run bob\'s "own"', ()),
    ],
)
def test_arguments_are_words_or_quoted(said: str, arguments: tuple[str, ...]) -> None:
    found = tools.find(said, [tool("open $1"), tool("open $1", name='bob\'s "own"')])
    assert found is not None and found[1] == arguments


@given(st.lists(st.text(min_size=1, max_size=8), max_size=4))
@example(["<THINK>"])
def test_arguments_of_a_tool_call_arrive_one_by_one(values: list[str]) -> None:
    told = json.dumps({"name": "report", "arguments": values})
    action, readable = dialects.of("instruct").act.parse(f"<tool_call>{told}</tool_call>")
    wanted = [" ".join(value.encode("utf-8", "replace").decode().split()) for value in values]
    if "</tool_call>" not in told and without_thinking(told) == told:  # marks that count wherever they stand
        found = tools.find(action, [tool("open $1")])
        assert readable and found is not None and found[1] == tuple(one for one in wanted if one)


@pytest.mark.parametrize("action", ["run", "run nothing", "run repo rt", "run reports 1"])
def test_an_unknown_tool_is_an_observation_and_costs_a_turn(action: str) -> None:
    env = Desk()
    done = play([action] * 6, [tool("submit")], env)
    assert [turn.result for turn in done.row.turns] == ["error unknown tool"] * 6  # the whole budget
    assert env.log == [] and {turn.called for turn in done.row.turns} == {None}
    assert not done.row.success and done.row.episode_return == 0.0


def test_only_injected_tools_can_be_called() -> None:
    kept_out = BASE.model_copy(update={"withhold_probability": 0.999})
    turn = first(["run report", "submit"], [tool("submit")], settings=kept_out)
    assert turn.result == "error unknown tool"


def test_of_tools_with_one_name_the_newest_is_called_and_longer_names_win() -> None:
    entries = [tool("old"), tool("new", round=2), tool("longer $1", name="report late")]
    assert first(["run report", "submit"], entries).result == "ok new"
    turn = first(["run report late x", "submit"], entries)
    assert (turn.result, turn.called) == ("ok longer x", "report late-actions-r1")


def test_a_call_needs_the_word_do_as_any_action() -> None:
    env = Desk()
    policy = ScriptedPolicy(lambda p, r: "h1" if r.prompt.ability == "select" else "run report")
    run = episode(rollout(), env, Shelf([tool("submit")]), BASE, sandbox=lambda: None)
    request = next(run)
    while env.log != ["run report"]:
        request = run.send(policy.generate([request])[0])
    run.close()


# ── code ──────────────────────────────────────────────────────────────────────────────────────


def test_code_runs_in_the_sandbox_and_not_in_the_world() -> None:
    box, env = Scripted(Outcome(exit_code=0, stdout="4 2\n")), Desk()
    done = play(["pay 7", "run report a b", "submit"], [tool("print(1)", "python")], env, lambda: box)
    assert box.asked == [("python", "print(1)", ("a", "b"))]
    assert [turn.result for turn in done.row.turns] == ["ok pay 7", "4 2", "ok submit"]
    assert env.log == ["pay 7", "submit"] and done.row.success
    assert done.row.turns[1].called == "report-python-r1" and done.row.turns[1].reward == 0.0


def test_a_world_that_executes_is_asked_instead() -> None:
    box, env = Scripted(Outcome(exit_code=0)), Shop()
    assert isinstance(env, Executes) and not isinstance(Desk(), Executes)
    done = play(["run report a"], [tool("ls", "bash")], env, lambda: box)
    assert env.executed == [("report", ("a",))] and box.asked == []
    assert done.row.turns[0].result == "done by the shop" and done.row.success


def test_without_isolation_code_is_shown_only_and_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_DISPLAY", "plain")
    tools._tell_shown_only.cache_clear()
    env = Shop()
    entries = [tool("ls", "bash"), tool("print(1)", "python", name="adder"), tool("pay 7 ; submit", name="payer")]
    done = play(["run report", "run adder", "run payer"], entries, env)
    assert [turn.result for turn in done.row.turns] == [tools.SHOWN_ONLY, tools.SHOWN_ONLY, "ok submit"]
    assert env.executed == [] and done.row.success  # actions need no sandbox
    assert capsys.readouterr().err.count("are shown, not run") == 1


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome(exit_code=0, stdout="a\n b | c\x1b[2J\n"), "a b c [2J"),
        (Outcome(exit_code=0), "done"),
        (Outcome(exit_code=1, stdout="x", stderr="Traceback\nValueError: no\n"), "error exit 1 ValueError: no"),
        (Outcome(exit_code=137, killed_by="SIGKILL"), "error SIGKILL"),
        (Outcome(exit_code=143, stdout="x", timed_out=True, killed_by="wall time"), "error wall time"),
        (Outcome(exit_code=143, stdout="y" * 9, truncated=True, killed_by="output"), "error output"),
        (Outcome(exit_code=0, stdout="w " * 60), "w " * tools.RESULT_WORDS + "…"),
        (Outcome(exit_code=0, stdout="x" * 60_000), "x" * 24),
        (Outcome(exit_code=1, stderr="y" * 60_000), f"error exit 1 {'y' * 24}"),
    ],
)
def test_what_a_run_says(outcome: Outcome, said: str) -> None:
    assert tools.observation_of(outcome) == said


def test_a_sandbox_that_is_down_is_an_outage_not_a_failure() -> None:
    class Down(Scripted):
        def run(self, *words, **fields):  # type: ignore[no-untyped-def]
            raise OutageError("no namespaces left")

    with pytest.raises(OutageError):
        play(["run report"], [tool("ls", "bash")], sandbox=lambda: Down(Outcome(exit_code=0)))


def test_an_unsupported_language_is_an_observation() -> None:
    assert first(["run report", "submit"], [tool("x", "cobol")]).result == "error unsupported language"


@settings(max_examples=150, deadline=None)
@given(
    action=st.lists(st.sampled_from(["run", "report", "$1", ";", "\0", "x" * 5000, "\ud800", "é"]), max_size=6),
    code=st.text(max_size=30),
    language=st.sampled_from(["actions", "bash", "python", "terse", ""]),
)
def test_no_call_raises(action: list[str], code: str, language: str) -> None:
    env = Desk()
    box = Scripted(Outcome(exit_code=0))
    called = tools.call(" ".join(action), env, [tool(code, language)], steps_left=3, sandbox=lambda: box)
    assert 1 <= called.n_steps <= 3 and len(env.log) <= 3
    assert all("\0" not in word for _, _, words in box.asked for word in words)


def test_old_rows_are_still_read() -> None:
    turn = TurnRecord.model_validate({"observation": "", "action": "a", "result": "b", "reward": 0.0, "parsed": True})
    assert turn.called is None


def test_a_real_tool_in_the_real_sandbox() -> None:
    if available() is None:
        pytest.skip(f"no isolation on this machine: {probe().detail}")
    code = "import sys\nprint(sum(map(int, sys.argv[1:])))"
    entries = [tool(code, "python", name="adder"), tool('echo "$2 $1"', "bash", name="turn")]
    done = play(["run adder 3 4", "run turn a b", "run adder x", "submit"], entries, sandbox=available)
    added, turned, failed, submitted = (turn.result for turn in done.row.turns)
    assert (added, turned, submitted) == ("7", "b a", "ok submit") and failed.startswith("error exit 1 ValueError")
