"""The lock-step driver: fixed batches, outages bridged byte for byte, environments always closed."""

from __future__ import annotations

import pytest
from rollout_world import Recorder, Shelf, Toy, agent, rollout, small, tip

from opd_evolver.errors import OutageError
from opd_evolver.fast.maintenance import MaintenanceSettings, maintenance
from opd_evolver.fast.wave import Wave
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import Episode, GenerationRequest, Reply, canonical_json
from opd_evolver.rollout.driver import drive, pause_s
from opd_evolver.rollout.runner import EnvironmentPool, FrozenView, Runner
from opd_evolver.rollout.settings import EpisodeSettings

SETTINGS = EpisodeSettings.of(small(fast__withhold_probability=0.0))
ROLLOUTS = [rollout(number) for number in range(7)]


class House:
    """Makes toys that share one count of outages, and remembers them."""

    def __init__(self, outages: int = 0) -> None:
        self.outages, self.made, self.log = [outages], [], []  # type: ignore[var-annotated]

    def __call__(self, domain: str) -> Toy:
        self.made.append(Toy(self.outages, self.log))
        return self.made[-1]


def play(
    house: House, policy: ScriptedPolicy, *, retries: int = 3, batch: int = 4
) -> tuple[list[Episode], list[float]]:
    pauses: list[float] = []
    with EnvironmentPool(house) as pool:
        runner = Runner(policy, pool, Shelf([tip("late", "7")]), SETTINGS, retries, pauses.append)
        return runner.run(ROLLOUTS, batch), pauses


def rows(episodes: list[Episode]) -> list[str]:
    return [canonical_json(episode.model_copy(update={"seconds": 0.0})) for episode in episodes]


def test_requests_of_a_batch_are_answered_together_in_order() -> None:
    policy = Recorder(agent)
    episodes, _ = play(House(), policy)
    assert [episode.row.rollout_id for episode in episodes] == [one.rollout_id for one in ROLLOUTS]
    assert [len(batch) for batch in policy.batches] == [4, 4, 4, 3, 3, 3]


def test_finished_episodes_leave_the_batch() -> None:
    def stop_early(prompt: object, request: GenerationRequest) -> str:
        if request.prompt.ability == "act":
            return "do 7" if request.seed % 2 else "do 1"
        return "none"

    policy = Recorder(stop_early)
    episodes, _ = play(House(), policy, batch=7)
    assert [len(one.row.turns) for one in episodes] == [
        1 if e.row.calls[1].reply_text == "do 7" else 2 for e in episodes
    ]
    assert len(policy.batches) == 4


@pytest.mark.parametrize("outages", [1, 2, 3])
def test_an_outage_is_retried_with_back_off_and_leaves_no_trace(outages: int) -> None:
    calm, _ = play(House(), calm_policy := Recorder(agent))
    stormy_house = House(outages)
    stormy, pauses = play(stormy_house, policy := Recorder(agent))
    assert rows(stormy) == rows(calm)
    assert policy.batches == calm_policy.batches  # no reply was asked for twice, no batch was made up otherwise
    assert pauses == [pause_s(attempt) for attempt in range(1, outages + 1)] and pauses == sorted(pauses)
    assert all(toy.closed for toy in stormy_house.made)


def test_an_outage_in_mid_episode_replays_the_replies_so_far() -> None:
    class Late(Toy):
        def step(self, action: str):  # type: ignore[no-untyped-def]
            if self._left == 1 and self.outages[0] > 0:
                self.outages[0] -= 1
                raise OutageError("down")
            self.log.append(action)
            return self._advance(action)

        def _advance(self, action: str):  # type: ignore[no-untyped-def]
            kept, self.outages = self.outages, [0]
            try:
                return super().step(action)
            finally:
                self.outages = kept

    outages = [1]

    def wrong(prompt: object, request: GenerationRequest) -> str:
        return f"do {request.seed} wrong" if request.prompt.ability == "act" else "none"

    policy = Recorder(wrong)
    with EnvironmentPool(lambda domain: Late(outages)) as pool:
        runner = Runner(policy, pool, Shelf(), SETTINGS, 1, lambda seconds: None)
        [done] = runner.run(ROLLOUTS[:1], 1)
    assert len(done.row.turns) == 2
    assert [batch[0].prompt.ability for batch in policy.batches] == ["act", "act", "write"]


def test_an_outage_that_stays_fails_the_step_not_the_episode() -> None:
    house = House(10_000)
    with pytest.raises(OutageError, match=r"toy is down \(tried 3 times\)") as caught:
        play(house, ScriptedPolicy(agent), retries=2)
    assert caught.value.mend == "start toy" and caught.value.exit_code == 3
    assert house.made and all(toy.closed for toy in house.made)


def test_a_policy_that_is_down_has_waited_by_itself_and_is_not_asked_again() -> None:
    class Down(ScriptedPolicy):
        asked = 0

        def generate(self, requests):  # type: ignore[no-untyped-def]
            self.asked += 1
            raise OutageError("endpoint is down", "a server", "bring it up")

    house, policy = House(), Down(agent)
    with pytest.raises(OutageError) as caught:
        play(house, policy)
    assert (policy.asked, str(caught.value)) == (1, "endpoint is down; expected a server; mend: bring it up")
    assert house.made and all(toy.closed for toy in house.made)


@pytest.mark.parametrize(("domain", "call"), [("toy", "retrieve"), ("maintain", "retrieve"), ("maintain", "entries")])
def test_a_memory_that_is_down_has_waited_by_itself_and_is_not_asked_again(domain: str, call: str) -> None:
    asked: list[object] = []

    def down(*words: object, **more: object) -> None:
        asked.append(words)
        raise OutageError("embeddings are down", "vectors", "bring them up")

    shelf, pauses = Shelf([tip("late", "7")]), []  # type: ignore[var-annotated]
    setattr(shelf, call, down)
    settings = MaintenanceSettings.of(small())
    wave = Wave(round=1, index=0, n_tasks=1, microbatches=(), maintain_after=True)
    with EnvironmentPool(House()) as pool:
        runner = Runner(ScriptedPolicy(lambda p, r: "lookup late"), pool, shelf, SETTINGS, 3, pauses.append)
        start = runner.start(ROLLOUTS[0], shelf) if domain == "toy" else lambda: maintenance(wave, shelf, settings)
        with pytest.raises(OutageError) as caught:
            drive(runner.policy, [start], 1, outage_retries=3, sleep=pauses.append)
    assert (len(asked), pauses, type(caught.value)) == (1, [], OutageError)
    assert caught.value.seen == "embeddings are down"


def test_environments_are_closed_when_a_policy_breaks() -> None:
    house = House()

    def broken(prompt: object, request: GenerationRequest) -> str:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        play(house, ScriptedPolicy(broken))
    assert house.made and all(toy.closed for toy in house.made)


def test_environments_are_used_again() -> None:
    house = House()
    play(house, ScriptedPolicy(agent), batch=4)
    assert len(house.made) == 4
    assert all(toy.closed for toy in house.made)


def test_a_short_answer_of_a_policy_is_an_error() -> None:
    class Short(ScriptedPolicy):
        def generate(self, requests):  # type: ignore[no-untyped-def]
            return super().generate(requests)[:-1]

    with pytest.raises(ValueError, match="shorter"):
        play(House(), Short(agent))


def test_a_view_reads_each_query_once() -> None:
    shelf = Shelf([tip("late", "7")])
    view = FrozenView(shelf)
    first = view.retrieve("q", domain="toy", scope="zora", limit=3, alpha=0.5, scope_filter=True)
    shelf.held.clear()
    assert view.retrieve("q", domain="toy", scope="zora", limit=3, alpha=0.5, scope_filter=True) == first
    assert shelf.queries == ["q"]


def test_driving_nothing_asks_nothing() -> None:
    def refuse(prompt: object, request: GenerationRequest) -> str:
        raise AssertionError

    results: list[Reply] = drive(ScriptedPolicy(refuse), [], 4)
    assert results == []
