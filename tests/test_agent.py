"""The evolved agent in one's own program: what a session says is what the episode would, and an export is the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from benchmark_policies import reader
from conftest import Opd
from rollout_world import Shelf, small

from opd_evolver.agent import Agent
from opd_evolver.environments import registry
from opd_evolver.environments.protocol import Environment
from opd_evolver.errors import CorruptionError, OutageError, SetupError
from opd_evolver.lineage import open_run
from opd_evolver.memory import embed
from opd_evolver.memory.store import Memory
from opd_evolver.params import Params
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.policy.weights import weights_digest
from opd_evolver.records import Entry, GenerationRequest, Prompt, Reply, Task, TipContent, ToolContent
from opd_evolver.steps import plan

ROUND = "done:1"


@pytest.fixture(scope="module")
def seed() -> LocalPolicy:
    return LocalPolicy.load("seed", threads=1)


@pytest.fixture
def world() -> Iterator[Environment]:
    env = registry.load("apps", ("tip",))
    yield env
    env.close()


def by_hand(agent: Agent, env: Environment, task: Task) -> list[str]:
    """A task acted on by a session, as a program of one's own would."""
    session = agent.session(task.text, domain=task.domain, scope=task.scope)
    observation, actions = env.reset(task), []
    while len(actions) < agent.params.fast.max_steps:
        actions.append(session.act(observation))
        step = env.step(actions[-1])
        if step.terminated or step.truncated:
            break
        observation = step.observation
    return actions


@pytest.mark.parametrize(("speaks", "n_tasks"), [("seed", 4), ("script", 60)])
def test_a_session_acts_as_the_episode_does(
    intact: Path, seed: LocalPolicy, world: Environment, speaks: str, n_tasks: int
) -> None:
    read, turns = 0, 0
    with Agent.load(ROUND) as loaded:
        agent = Agent(seed if speaks == "seed" else reader(), loaded.memory, loaded.params)
        for task in world.tasks("deploy-train", n_tasks):
            row = agent.play(world, task).row
            assert by_hand(agent, world, task) == [turn.action for turn in row.turns]
            read, turns = read + len(row.injected), turns + len(row.turns)
    assert turns > n_tasks  # some tasks take more than one action
    assert read > 0 or speaks == "seed"  # and some are acted on by what the round remembers


def test_the_champion_is_what_the_next_round_starts_from(intact: Path) -> None:
    champion = plan.current(open_run(Path.cwd(), "done"))
    with Agent.load("champion", run="done") as agent:
        assert agent.policy.version == champion.policy_digest[:16]
        assert (agent.memory is None) == (champion.round == 0)
        assert agent.act("boru cleanup s1", domain="apps", scope="boru") is not None
    with Agent.load("done:0") as base:
        assert base.memory is None and base.session("x", domain="sql").memories == ()


@pytest.mark.parametrize(
    ("what", "said"),
    [("nothing", "no agent `nothing`"), ("done:7", "round 7 of `done` has not finished"), ("dine:1", "no run `dine`")],
)
def test_an_unknown_agent_is_one_line(project: Path, what: str, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        Agent.load(what)


# ── export ────────────────────────────────────────────────────────────────────────────────────


def test_an_exported_agent_needs_nothing_else(project: Path, opd: Opd, world: Environment) -> None:
    tasks = world.tasks("deploy-train", 20)
    with Agent.load(ROUND) as loaded:
        kept = Agent(reader(), loaded.memory, loaded.params)
        before = [[turn.action for turn in kept.play(world, task).row.turns] for task in tasks]
        version = loaded.policy.version
    said = opd("export", "done", "--round", "1", "--to", "out/mine", "--json")
    assert said.code == 0, said.err
    tree = json.loads(said.out)
    assert (tree["round"], tree["form"], tree["folder"]) == (1, "merged", "out/mine")
    moved = project.parent / "elsewhere"
    shutil.move("out/mine", moved)
    for gone in ("runs", "versions"):
        shutil.rmtree(gone)
    with Agent.load(moved) as agent:
        assert agent.policy.version == version
        again = Agent(reader(), agent.memory, agent.params)
        assert [[turn.action for turn in again.play(world, task).row.turns] for task in tasks] == before
    prompts = (moved / "prompts.md").read_text()
    assert "## act" in prompts and "## write" in prompts and "    " in prompts
    card = (moved / "README.md").read_text()
    assert tree["policy_digest"][:16] in card and "deploy-test" in card and "Agent.load" in card


def test_the_base_policy_is_exported_without_memory(project: Path, opd: Opd) -> None:
    assert opd("export", "done", "--round", "0", "--to", "base").code == 0
    assert not Path("base/memory").exists()
    with Agent.load("base") as agent:
        assert agent.memory is None


def test_other_bytes_are_refused(project: Path, opd: Opd) -> None:
    assert opd("export", "done", "--round", "1", "--to", "out").code == 0
    with Path("out/memory/entries.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(CorruptionError, match="memory"):
        Agent.load("out")
    shutil.rmtree("out/memory")
    shutil.copytree("versions/done/round-001/memory", "out/memory")
    Agent.load("out").close()
    weights = Path("out/policy/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(CorruptionError, match="digest"):
        Agent.load("out")
    Path("out/agent.json").write_text("{}")
    with pytest.raises(CorruptionError, match=r"agent\.json is malformed"):
        Agent.load("out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--round", "1", "--to", "runs"), "runs exists"),
        (("--round", "9", "--to", "out"), "round 9 of `done` has not finished"),
        (("--round", "1", "--to", "out", "--form", "adapter"), "round 1 of `done` has no adapter"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_left(
    intact: Path, opd: Opd, arguments: tuple[str, ...], said: str
) -> None:
    found = opd("export", "done", *arguments)
    assert found.code == 2 and said in found.err and "Traceback" not in found.err
    assert not Path("out").exists()


# ── saved tools and the budget ────────────────────────────────────────────────────────────────


def tool(name: str, code: str, language: str = "actions") -> Entry:
    content = ToolContent(name=name, language=language, code=code)
    return Entry(entry_id=name, domain="toy", scope="zora", content=content, created_round=1)


class _Held(Agent):
    """An agent that reads the given entries."""

    def __init__(self, says: list[str], entries: list[Entry], params: Params) -> None:
        seen: list[str] = []
        self.seen = seen

        def answer(prompt: Prompt, request: GenerationRequest) -> str:
            if prompt.ability == "select":
                return " ".join(f"h{number + 1}" for number in range(len(entries)))
            seen.append(" ".join(segment.text for segment in prompt.messages[-1].segments))
            return says.pop(0)

        super().__init__(ScriptedPolicy(answer), None, params)
        self.settings = self.settings.model_copy(update={"read": True})
        self.memory: Memory = Shelf(entries)  # type: ignore[assignment]


def test_a_tool_of_actions_comes_back_action_by_action() -> None:
    agent = _Held(["do run report t7", "do done"], [tool("report", "open $1 ; pay $1")], small())
    session = agent.session("task", domain="toy", scope="zora")
    assert [session.act(seen) for seen in ("start", "opened", "paid")] == ["open t7", "pay t7", "done"]
    assert "paid" in agent.seen[-1] and "opened" not in agent.seen[-1]
    assert session.n_steps == 3 and [entry.entry_id for entry in session.memories] == ["report"]


def test_a_call_that_cannot_be_made_is_answered_here_and_costs_a_step() -> None:
    held = [tool("report", "open $1"), tool("ruby", "puts", language="ruby")]
    agent = _Held(["do run report", "do run nothing", "do run ruby", "do look"], held, small())
    session = agent.session("task", domain="toy", scope="zora")
    assert session.act("start") == "look"
    assert session.n_steps == 4
    assert agent.seen[1:] == ["error missing argument $1", "error unknown tool", "error unsupported language"]


@pytest.mark.parametrize("down", range(5))
def test_after_an_outage_the_same_call_goes_on_where_it_broke_off(down: int) -> None:
    """Selection, first action, a call answered here, an action, the last one: each is where the endpoint fails once."""
    held, seen = [tool("ruby", "puts", language="ruby")], []

    def played(fails_at: int | None) -> list[str]:
        agent = _Held(["do look", "do run ruby", "do open", "do pay"], held, small(fast__outage_retries=0))
        answer, prompts, n = agent.policy.generate, [], 0

        def generate(requests: Sequence[GenerationRequest]) -> list[Reply]:
            nonlocal n, fails_at
            n += 1
            if n - 1 == fails_at:
                fails_at = None
                raise OutageError("the endpoint is down")
            prompts.extend(requests)
            return answer(requests)

        agent.policy.generate = generate  # type: ignore[method-assign]
        session, actions = agent.session("task", domain="toy", scope="zora"), []
        for observation in ("start", "looked", "opened"):
            try:
                actions.append(session.act(observation))
            except OutageError:
                actions.append(session.act(observation))
        seen.append([request.prompt for request in prompts])
        return [*actions, str(session.n_steps)]

    assert played(None) == played(down) == ["look", "open", "pay", "4"]
    assert seen[0] == seen[1]


def test_the_budget_ends_a_session() -> None:
    most = small().fast.max_steps
    agent = _Held(["do look"] * (most + 1), [], small())
    session = agent.session("task", domain="toy")
    for _ in range(most):
        session.act("x")
    with pytest.raises(SetupError, match=rf"{most} steps were taken in this session.*begin another session"):
        session.act("x")


def test_an_unreadable_reply_is_an_action_as_it_is() -> None:
    agent = _Held(
        ["hm"],
        [
            Entry(
                entry_id="t", domain="toy", scope="zora", content=TipContent(trigger="late", text="4"), created_round=1
            )
        ],
        small(),
    )
    assert agent.act("task", domain="toy", scope="zora") == "hm"


def test_an_export_is_made_once_and_never_over_another(project: Path, opd: Opd) -> None:
    words = ("export", "done", "--to", "out", "--json")
    first = opd(*words, "--round", "1")
    assert opd(*words, "--round", "1").out == first.out
    other = opd(*words, "--round", "0")
    assert other.code == 2 and "out holds round 1 of `done`" in other.err


def test_a_round_of_another_embedder_is_exported_with_what_its_lineage_left_behind(
    project: Path, opd: Opd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(embed.EMBEDDERS, "hash-64", lambda: embed.HashEmbedder(64))
    assert opd("memory", "reembed", "--to", "hash-64", "--name", "done").code == 0
    assert opd("export", "done", "--round", "1", "--to", "out").code == 0
    with Agent.load("done:1") as here, Agent.load("out") as there:
        assert here.memory is not None and there.memory is not None
        assert here.memory.index.embedder.dimension == 64 and here.memory.digest() == there.memory.digest()


def test_weights_digest_of_an_export_is_that_of_the_round(project: Path, opd: Opd) -> None:
    opd("export", "done", "--round", "1", "--to", "out")
    assert weights_digest(Path("out/policy")) == weights_digest(Path("versions/done/round-001/policy"))
