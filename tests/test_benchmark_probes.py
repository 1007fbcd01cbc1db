"""Probes: a perfect reader scores 1, a policy that ignores memory is found out, cases never change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from opd_evolver.abilities.dialect import HINT
from opd_evolver.benchmark import probe_cases as cases
from opd_evolver.benchmark.prober import Prober
from opd_evolver.benchmark.probes import (
    ALL_PROBES,
    ProbeReport,
    evaluate_probes,
    probe_table,
    report_json,
    trained_on,
)
from opd_evolver.benchmark.wordings import TEMPLATES
from opd_evolver.environments import registry
from opd_evolver.environments.domain import TIPS_ONLY
from opd_evolver.errors import SetupError
from opd_evolver.params import EnvironmentParams, Params
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import GenerationRequest, Prompt, TipContent
from opd_evolver.rollout.runner import EnvironmentPool
from tests.benchmark_policies import reader, stubborn

# The reader here speaks of tips; families of every level have tests/test_levels_probes.py.
PARAMS = Params.model_validate({"environments": {"levels": TIPS_ONLY}, "benchmark": {"bootstrap_samples": 200}})


@pytest.fixture
def pool() -> Iterator[EnvironmentPool]:
    with EnvironmentPool(registry.loader(EnvironmentParams(levels=TIPS_ONLY))) as opened:
        yield opened


def values(report: ProbeReport) -> dict[str, float | None]:
    return {name: one.mean for name, one in report.metrics.items()}


def test_a_perfect_reader_is_perfect_where_memory_tells_and_lost_where_it_does_not(pool: EnvironmentPool) -> None:
    report = evaluate_probes(reader(), pool, "novel-test", 30, PARAMS, drift_split="deploy-val")
    found = values(report)
    for name in ("memory_use", "override", "drift", "select_f1", "write_exact", "write_hindsight"):
        assert found[name] == 1.0, (name, found)
    for name in ("no_memory", "distractors_only"):
        assert found[name] is not None and found[name] < 0.35
    assert found["use_minus_none"] is not None and found["use_minus_none"] > 0.6
    assert 1.0 <= (found["steps_per_success"] or 0) <= 2.0
    assert set(report.metrics["memory_use"].per_domain) == {"sql", "apps"}
    assert report.metrics["memory_use"].n_tasks == 60


def test_beliefs_in_the_weights_show_as_drift_and_not_as_memory_use(pool: EnvironmentPool) -> None:
    """A policy that has taken deployed conventions into its weights and no longer listens: drift finds it out."""
    beliefs: dict[tuple[str, str], str] = {}
    for name in ("sql", "apps"):
        with pool.lend(name) as env:
            for task in env.tasks("deploy-val", 30):
                beliefs |= {(fact.scope, fact.key): fact.value for fact in env.facts(task)}  # type: ignore[attr-defined]
    found = values(
        evaluate_probes(
            stubborn(beliefs), pool, "novel-val", 30, PARAMS, probes=("memory_use",), drift_split="deploy-val"
        )
    )
    assert found["drift"] is not None and found["drift"] < 0.35
    assert found["memory_use"] is not None and found["memory_use"] < 0.35


def test_writing_is_exact_only_when_nothing_is_missing_or_too_much(pool: EnvironmentPool) -> None:
    def always(text: str) -> ScriptedPolicy:
        return ScriptedPolicy(lambda prompt, request: text)

    none = values(evaluate_probes(always("none"), pool, "novel-val", 40, PARAMS, probes=("write_exact",)))
    assert none["write_exact"] is not None and 0.25 <= none["write_exact"] <= 0.6
    junk = values(evaluate_probes(always("blah"), pool, "novel-val", 40, PARAMS, probes=("write_exact", "select_f1")))
    assert junk == {"write_exact": 0.0, "select_f1": 0.0}
    everything = values(
        evaluate_probes(
            always(" ".join(f"h{i}" for i in range(1, 9))), pool, "novel-val", 40, PARAMS, probes=("select_f1",)
        )
    )
    assert everything["select_f1"] is not None and everything["select_f1"] < 0.45


def test_cases_are_fixed_and_as_described(pool: EnvironmentPool) -> None:
    for name in ("sql", "apps"):
        with pool.lend(name) as env:
            domain: cases.Probed = env  # type: ignore[assignment]
            neighbours = cases.Neighbours(domain, "novel-test")
            tasks = domain.tasks("novel-test", 40)
            n_right = set()
            for task in tasks:
                needed = {(fact.scope, fact.key): fact.value for fact in domain.needed(task)}
                case = cases.act_case(domain, neighbours, task, "memory_use")
                assert case == cases.act_case(domain, neighbours, task, "memory_use")
                assert len(case.entries) == len(needed) + cases.N_DISTRACTORS
                told = {
                    (e.scope, e.content.trigger): e.content.text
                    for e in case.entries
                    if isinstance(e.content, TipContent)
                }
                assert needed.items() <= told.items()
                others = cases.act_case(domain, neighbours, task, "distractors_only")
                assert (
                    not {(e.scope, e.content.trigger) for e in others.entries if isinstance(e.content, TipContent)}
                    & needed.keys()
                )
                chosen = cases.select_case(domain, neighbours, task)
                assert len(chosen.candidates) == cases.N_CANDIDATES
                n_right.add(len(chosen.right))
            assert n_right == {0, 1, 2}


def test_override_places_a_newer_right_entry_beside_a_stale_wrong_one(pool: EnvironmentPool) -> None:
    with pool.lend("sql") as env:
        domain: cases.Probed = env  # type: ignore[assignment]
        neighbours = cases.Neighbours(domain, "deploy-val")
        for task in domain.tasks("deploy-val", 20):
            for placement in ("override", "drift"):
                case = cases.act_case(domain, neighbours, task, placement)  # type: ignore[arg-type]
                for fact in domain.needed(case.task):
                    rivals = [
                        (entry.created_round, entry.content.text)
                        for entry in case.entries
                        if entry.scope == fact.scope
                        and isinstance(entry.content, TipContent)
                        and entry.content.trigger == fact.key
                    ]
                    assert len(rivals) == 2 and max(rivals)[1] == fact.value != min(rivals)[1]
            old = {fact.key: fact.value for fact in domain.needed(task)}
            changed = cases.act_case(domain, neighbours, task, "drift").task
            assert all(old[fact.key] != fact.value for fact in domain.needed(changed))


def test_controls_place_other_scopes_or_what_now_holds(pool: EnvironmentPool) -> None:
    with pool.lend("sql") as env:
        domain: cases.Probed = env  # type: ignore[assignment]
        neighbours = cases.Neighbours(domain, "novel-val")
        for task in domain.tasks("novel-val", 24):
            other = cases.act_case(domain, neighbours, task, "wrong_scope")
            keys = {fact.key for fact in domain.needed(task)}
            assert other.entries and task.scope not in {entry.scope for entry in other.entries}
            assert {entry.content.trigger for entry in other.entries if isinstance(entry.content, TipContent)} <= keys
            moved = cases.act_case(domain, neighbours, task, "permuted")
            before, now = domain.facts(task), domain.facts(moved.task)
            assert sorted(fact.value for fact in before) == sorted(fact.value for fact in now)
            assert [fact.value for fact in before] != [fact.value for fact in now]
            held = {
                entry.content.trigger: entry.content.text
                for entry in moved.entries
                if entry.scope == task.scope and isinstance(entry.content, TipContent)
            }
            assert all(held.get(fact.key) == fact.value for fact in domain.needed(moved.task))


def test_tips_in_other_words_say_the_same(pool: EnvironmentPool) -> None:
    with pool.lend("sql") as env:
        domain: cases.Probed = env  # type: ignore[assignment]
        neighbours = cases.Neighbours(domain, "novel-val")
        seen = set()
        for task in domain.tasks("novel-val", 40):
            case = cases.act_case(domain, neighbours, task, "reworded")
            texts = [entry.content.text for entry in case.entries if isinstance(entry.content, TipContent)]
            assert all(len(text.split()) > 1 for text in texts)
            seen |= {" ".join("{}" if word.isdigit() else word for word in text.split()) for text in texts}
            for fact in domain.needed(task):
                assert any(fact.value in text.split() for text in texts)
        assert seen == set(TEMPLATES)


def test_a_reader_passes_the_controls_and_one_who_knows_does_not(pool: EnvironmentPool) -> None:
    wanted = ("memory_use", "no_memory", "wrong_scope", "permuted")
    read = evaluate_probes(reader(), pool, "novel-val", 24, PARAMS, probes=wanted).metrics
    assert read["memory_use"].mean == read["permuted"].mean == 1.0
    assert read["wrong_scope_minus_none"].mean == 0.0 and read["permuted_minus_use"].mean == 0.0
    known = {}
    for name in ("sql", "apps"):
        with pool.lend(name) as env:
            facts = [fact for task in env.tasks("novel-val", 24) for fact in env.facts(task)]  # type: ignore[attr-defined]
            known |= {(fact.scope, fact.key): fact.value for fact in facts}
    knows = evaluate_probes(stubborn(known), pool, "novel-val", 24, PARAMS, probes=wanted).metrics
    assert knows["no_memory"].mean == 1.0
    assert knows["permuted"].mean is not None and knows["permuted"].mean < 0.5


def test_hindsight_reaches_the_writer_only_where_asked(pool: EnvironmentPool) -> None:
    seen: list[str] = []

    def note(prompt: Prompt, request: GenerationRequest) -> str:
        assert request.sampling.temperature == 0.0
        seen.append(" ".join(segment.text for segment in prompt.messages[0].segments))
        return "none"

    prober = Prober(ScriptedPolicy(note), pool, "novel-val", 20, PARAMS)
    prober.write(hindsight=False)
    assert not any(f" {HINT} " in text for text in seen)
    plain, seen[:] = list(seen), []
    prober.write(hindsight=True)
    hinted = [text for text in seen if f" {HINT} " in text]
    assert hinted and [text.split(f" {HINT} ")[0] for text in seen] == plain


def test_report_prints_and_domains_without_known_facts_are_named(pool: EnvironmentPool) -> None:
    report = evaluate_probes(reader(), pool, "novel-val", 4, PARAMS, probes=ALL_PROBES)
    tree = report_json(report)
    assert "units" not in tree and set(tree["metrics"]["override"]) >= {
        "mean",
        "low",
        "high",
        "n_tasks",
        "n_families",
        "per_domain",
    }
    text = probe_table(tree)
    assert "memory_use" in text and "apps" in text and "95 %" in text

    class Plain:
        domain = "plain"

        def close(self) -> None: ...

    alone = PARAMS.model_copy(update={"environments": PARAMS.environments.model_copy(update={"domains": ("plain",)})})
    with pytest.raises(SetupError, match="can be probed"):
        Prober(reader(), EnvironmentPool(lambda name: Plain()), "novel-val", 4, alone)  # type: ignore[arg-type, return-value]


def test_a_trained_seed_policy_is_measured_where_it_was_trained(tmp_path: Path) -> None:
    assert trained_on(tmp_path) == ()
    (tmp_path / "training.json").write_text('{"settings": {"domains": ["shell", "sql"]}}')
    assert trained_on(tmp_path) == ("shell", "sql")
    assert set(trained_on("seed")) >= {"sql", "apps"}
