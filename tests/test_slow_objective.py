"""Forward KL and the scoring of replies: hand-worked numbers, a float64 reference, gradients, shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from beartype import beartype
from checkpoints import MAKERS
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped

from opd_evolver.errors import SetupError
from opd_evolver.params import Params, SlowParams
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.slow import forward
from opd_evolver.slow.batches import Item, microbatches, scale_of, token_counts
from opd_evolver.slow.forward import ReplyLogits, lay_out, prefix_weights, token_logprobs
from opd_evolver.slow.objective import OBJECTIVES, objective
from opd_evolver.slow.trainer import learning_rate

checked = jaxtyped(typechecker=beartype)(OBJECTIVES["forward_kl"])


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return checked(student, teacher, torch.zeros(len(student), dtype=torch.int64))


def reference(student: np.ndarray, teacher: np.ndarray) -> list[float]:
    """sum_v p_v (log p_v - log q_v) by plain loops in float64."""
    out = []
    for s, t in zip(student.astype(float), teacher.astype(float), strict=True):
        p = [math.exp(x - t.max()) for x in t]
        q = [math.exp(x - s.max()) for x in s]
        total_p, total_q = sum(p), sum(q)
        out.append(
            sum(a / total_p * (math.log(a / total_p) - math.log(b / total_q)) for a, b in zip(p, q, strict=True))
        )
    return out


def test_hand_worked() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812 nats."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert forward_kl(student, teacher).item() == pytest.approx(0.130812, abs=1e-6)
    assert forward_kl(teacher, student).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)


def test_zero_at_equality_whatever_the_offset() -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(forward_kl(logits, logits), torch.zeros(5))
    assert forward_kl(logits + 3.0, logits).abs().max() < 1e-6


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 30), st.floats(0.1, 8.0))
def test_equals_the_reference_and_is_not_negative(seed: int, n: int, v: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = (rng.normal(0, scale, (n, v)).astype(np.float32) for _ in range(2))
    found = forward_kl(torch.from_numpy(student), torch.from_numpy(teacher))
    assert found.numpy() == pytest.approx(reference(student, teacher), abs=2e-5)
    assert (found > -1e-6).all()


def test_the_gradient_is_student_minus_teacher_and_none_reaches_the_teacher() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(3, 7, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 7, generator=generator, requires_grad=True)
    forward_kl(student, teacher).sum().backward()
    expected = torch.softmax(student, -1) - torch.softmax(teacher, -1)
    assert student.grad is not None
    assert torch.allclose(student.grad, expected.detach(), atol=1e-6)
    assert teacher.grad is None


def test_shapes_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        forward_kl(torch.zeros(3, 7), torch.zeros(3, 8))
    with pytest.raises(TypeCheckError):
        forward_kl(torch.zeros(3), torch.zeros(3))


def test_unknown_objective() -> None:
    with pytest.raises(SetupError, match=r"slow\.objective nonsense"):
        objective("nonsense")


# ── reply positions ───────────────────────────────────────────────────────────────────────────

PROMPTS = [(5, 6, 7, 8, 9, 10, 11), (12, 13, 14), (15, 16, 17, 18, 19)]
REPLIES = [(20, 21), (22, 23, 24, 25), (26,)]


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("split", [True, False])
def test_reply_logits_are_those_of_each_row_on_its_own(tmp_path: Path, kind: str, split: bool) -> None:
    model = LocalPolicy.load(MAKERS[kind](tmp_path)).model
    score = ReplyLogits(model)
    assert score._split
    score._split = split
    layout = lay_out(PROMPTS, REPLIES, torch.device("cpu"))
    with torch.no_grad():
        found = jaxtyped(typechecker=beartype)(score.__call__)(layout)
        rows = []
        for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
            whole = model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0]
            rows.append(whole[len(prompt) - 1 : len(prompt) + len(reply) - 1])
    assert torch.allclose(found, torch.cat(rows), atol=1e-5)
    assert layout.targets.tolist() == [token for reply in REPLIES for token in reply]
    logs = jaxtyped(typechecker=beartype)(token_logprobs)(found, layout.targets)
    assert torch.allclose(logs, torch.log_softmax(torch.cat(rows), -1)[range(7), layout.targets], atol=1e-5)


def test_served_logprobs_are_those_that_training_scores(tmp_path: Path) -> None:
    """Token-in, token-out: generation with its cache and left padding agrees with the trainer's forward."""
    local = LocalPolicy.load(MAKERS["lfm2"](tmp_path))
    sampling = Params().fast
    from opd_evolver.policy.generation import generate
    from opd_evolver.records import Sampling

    settings_ = [Sampling(temperature=1.0, top_p=sampling.top_p, max_new_tokens=6)] * 3
    made = generate(local.model, PROMPTS, settings_, [1, 2, 3], local.end_ids, 0)
    layout = lay_out(PROMPTS, made.token_ids, torch.device("cpu"))
    with torch.no_grad():
        scored = token_logprobs(ReplyLogits(local.model)(layout), layout.targets)
    assert scored.tolist() == pytest.approx([p for one in made.logprobs for p in one], abs=1e-4)


def test_a_model_that_scales_its_logits_is_scored_by_its_own_forward(tmp_path: Path) -> None:
    model = LocalPolicy.load(MAKERS["llama"](tmp_path)).model
    plain = model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        out = plain(*args, **kwargs)
        out.logits = out.logits / 8.0
        return out

    model.forward = scaled
    score = ReplyLogits(model)
    layout = lay_out(PROMPTS, REPLIES, torch.device("cpu"))
    with torch.no_grad():
        expected = model(input_ids=layout.ids).logits[layout.rows, layout.columns]
        assert torch.allclose(score(layout), expected, atol=1e-6)
    assert not score._split


# ── batches ───────────────────────────────────────────────────────────────────────────────────


def item(source: str, n_prompt: int, n_reply: int, trust: float = 1.0) -> Item:
    prompt = tuple(range(1, n_prompt + 1))
    return Item(source, f"{source}{n_prompt}", prompt, prompt, (7,) * n_reply, trust)  # type: ignore[arg-type]


def test_token_counts_do_not_decide_an_abilitys_weight() -> None:
    """One long act reply and one short select reply: each ability's mean is taken first, then weighted."""
    items = [item("act", 3, 9), item("select", 3, 1)]
    scale = scale_of(token_counts(items), {"act": 1.0, "select": 0.3})
    kl = {"act": [2.0] * 9, "select": [5.0]}
    loss = sum(scale[i.group] * nats for i in items for nats in kl[i.source])
    assert loss == pytest.approx(1.0 * 2.0 + 0.3 * 5.0)
    assert "write" not in scale


def test_microbatches_hold_each_item_once_by_length_anchors_apart() -> None:
    items = [item("act", n % 13 + 1, 2) for n in range(20)] + [item("anchor", n + 1, 3) for n in range(5)]
    batches = microbatches(items, 8, 10)
    assert sorted(map(id, (one for batch in batches for one in batch))) == sorted(map(id, items))
    assert all(len(batch) <= 8 and len({one.source == "anchor" for one in batch}) == 1 for batch in batches)
    acts = [batch for batch in batches if batch[0].source == "act"]
    lengths = [len(one.student_ids) for batch in acts for one in batch]
    assert lengths == sorted(lengths)
    assert microbatches([], 8, 10) == []


@given(st.lists(st.integers(1, 60), max_size=7).map(sorted), st.integers(1, 4), st.integers(0, 80))
def test_runs_cost_as_little_as_any_cut_does(lengths: list[int], size: int, per_run: int) -> None:
    def cost(ends: Sequence[int]) -> int:
        starts = [0, *ends[:-1]]
        if any(not 0 < end - start <= size for start, end in zip(starts, ends, strict=True)):
            return 10**9
        return sum((end - start) * lengths[end - 1] + per_run for start, end in zip(starts, ends, strict=True))

    runs = forward.cut(lengths, size, per_run)
    assert [place for run in runs for place in range(len(lengths))[run]] == list(range(len(lengths)))
    if lengths:
        inner = range(1, len(lengths))
        every = [(*ends, len(lengths)) for n in range(len(lengths)) for ends in itertools.combinations(inner, n)]
        assert cost([run.stop for run in runs]) == min(cost(ends) for ends in every)


def test_runs_give_the_logits_of_one_rectangle(tmp_path: Path) -> None:
    score = ReplyLogits(LocalPolicy.load(MAKERS["lfm2"](tmp_path)).model)
    prompts = [list(range(3, 3 + n)) for n in (40, 2, 3, 200, 41)]
    replies = [(5, 6), (7,), (8, 9, 10), (11,), (12, 13)]
    with torch.no_grad():
        whole = score(lay_out(prompts, replies, torch.device("cpu")))
        parts, n_processed = forward.logits_in_runs(score, prompts, replies, torch.device("cpu"))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert n_processed < 5 * 200


def test_learning_rate_warms_up_then_follows_a_cosine() -> None:
    params = SlowParams(steps=100, learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate(step, params) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[99] < 0.01
    assert learning_rate(0, SlowParams(steps=1, learning_rate=1.0)) == 1.0


def test_layout_pads_on_the_right() -> None:
    layout = forward.lay_out([(1, 2), (3,)], [(4, 5), (6, 7, 8)], torch.device("cpu"))
    assert layout.ids.tolist() == [[1, 2, 4], [3, 6, 7]]
    assert layout.rows.tolist() == [0, 0, 1, 1, 1]
    assert layout.columns.tolist() == [1, 2, 0, 1, 2]
    assert layout.n_processed == 6


def test_tokens_count_as_far_as_the_teacher_would_have_said_those_before() -> None:
    """Two replies, of three and of two tokens."""
    teacher = [0.5, 0.1, 0.9, 0.2, 0.5]
    student = [0.25, 0.4, 0.9, 0.8, 0.5]

    def logits(chances: list[float]) -> torch.Tensor:
        return torch.log(torch.tensor([[p, 1.0 - p] for p in chances]))

    found = prefix_weights(logits(student), logits(teacher), torch.zeros(5, dtype=torch.long), [3, 2])
    # 2 is cut to 1; 2 * 0.25 = 0.5; the second reply begins anew.
    assert found.tolist() == pytest.approx([1.0, 1.0, 0.5, 1.0, 0.25], rel=1e-5)


def test_sft_is_the_negative_log_likelihood_of_what_was_served() -> None:
    student = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], requires_grad=True)
    found = OBJECTIVES["sft"](student, torch.full((2, 2), 9.0), torch.tensor([1, 0]))
    assert found.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    found.sum().backward()
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([0.25, -0.25, -0.5, 0.5])


def test_each_rehearsed_ability_has_an_equal_share_of_the_anchors_weight() -> None:
    items = [
        Item("anchor", "a", (1,), (1,), (7,) * 90, rehearsed="act"),
        Item("anchor", "b", (1,), (1,), (7,) * 3, rehearsed="select"),
        Item("act", "c", (1,), (1,), (7,) * 5),
    ]
    scale = scale_of(token_counts(items), {"act": 1.0, "anchor": 2.0})
    assert scale == {"act": 1 / 5, "anchor act": 1.0 / 90, "anchor select": 1.0 / 3}


def test_acting_with_memory_weighs_as_much_as_acting_without() -> None:
    items = [item("act", 3, 9), Item("act", "m", (1,), (1,), (7,) * 4, with_memory=True)]
    assert scale_of(token_counts(items), {"act": 0.5, "select": 9.0}) == {"act": 0.5 / 9, "act with memory": 0.5 / 4}
