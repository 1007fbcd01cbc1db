"""Local generation: batched equals single, same seed same bytes, exact distributions, log-probabilities."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch

from opd_evolver.errors import SetupError
from opd_evolver.params import PRESETS, PolicyParams, load_preset, merge
from opd_evolver.policy import generation
from opd_evolver.policy.cache import bytes_per_token, joined, reply_cache
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.policy.protocol import TokenPolicy, TrainablePolicy
from opd_evolver.policy.registry import open_policy
from opd_evolver.policy.sampling import Sampler, uniforms
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.policy.weights import check_positions
from opd_evolver.records import GenerationRequest, Message, Prompt, Sampling, Segment
from opd_evolver.steps import prepare

each = pytest.mark.parametrize("kind", sorted(checkpoints.MAKERS))
TEXTS = ("zora late", "a", "select count ( * ) from jobs where state = 4 " * 3, "hello there", "zora late")
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="session")
def policies(root: Path) -> dict[str, LocalPolicy]:
    return {kind: LocalPolicy.load(checkpoints.cached(kind, root)) for kind in checkpoints.MAKERS}


def request_of(text: str, seed: int = 0, sampling: Sampling = GREEDY) -> GenerationRequest:
    message = Message(role="user", segments=(Segment(text=text),))
    return GenerationRequest(prompt=Prompt(ability="act", messages=(message,)), sampling=sampling, seed=seed)


@each
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(max_new_tokens=12), Sampling(top_p=1.0, max_new_tokens=12)])
def test_batched_equals_single(policies: dict[str, LocalPolicy], kind: str, sampling: Sampling) -> None:
    requests = [request_of(text, seed, sampling) for seed, text in enumerate(TEXTS)]
    together = policies[kind].generate(requests)
    for request, reply in zip(requests, together, strict=True):
        (alone,) = policies[kind].generate([request])
        assert reply.token_ids == alone.token_ids
        assert np.allclose(reply.logprobs, alone.logprobs, atol=1e-5)


@each
def test_prefill_in_pieces_with_repeats_equals_one_by_one(
    policies: dict[str, LocalPolicy], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policies[kind]
    rng = np.random.default_rng(0)
    distinct = [tuple(rng.integers(5, 300, n_tokens).tolist()) for n_tokens in (1, 2, 3, 9, 9, 20, 33, 34, 60)]
    prompts = [distinct[index] for index in (3, 8, 0, 1, 4, 6, 6, 2, 7, 5, 0)]
    setting = Sampling(top_p=0.9, max_new_tokens=9)
    alone = [policy.generate_ids([prompt], setting, [seed])[0] for seed, prompt in enumerate(prompts)]
    for budget in (1, 40, 100):
        monkeypatch.setitem(generation._PREFILL_TOKENS, "cpu", budget)
        assert policy.generate_ids(prompts, setting, range(len(prompts))) == alone


@pytest.mark.parametrize(("kind", "layers", "heads", "size"), [("qwen3", 2, 2, 8), ("llama", 2, 2, 8)])
def test_a_token_holds_a_key_and_a_value_in_each_layer(
    policies: dict[str, LocalPolicy], kind: str, layers: int, heads: int, size: int
) -> None:
    assert bytes_per_token(policies[kind].model) == layers * 2 * heads * size * 4


def test_layers_of_constant_size_hold_nothing_for_a_token(policies: dict[str, LocalPolicy]) -> None:
    config = policies["lfm2"].model.config
    attends = config.layer_types.count("full_attention")
    size = config.hidden_size // config.num_attention_heads
    assert 0 < attends < config.num_hidden_layers
    assert bytes_per_token(policies["lfm2"].model) == attends * 2 * config.num_key_value_heads * size * 4


def test_pieces_that_were_joined_hold_nothing(policies: dict[str, LocalPolicy]) -> None:
    """A long prompt's keys and values lie in memory once."""
    model = policies["qwen3"].model
    pieces = []
    for n_tokens in (3, 7, 5):
        pieces.append(reply_cache(model.config, 4))
        model(input_ids=torch.arange(5, 5 + n_tokens)[None], past_key_values=pieces[-1], use_cache=True)
    whole = joined(pieces)
    assert [len(layer.keys) for layer in whole.layers] == [3] * len(whole.layers)
    assert all(layer.keys is None and layer.values is None for piece in pieces[1:] for layer in piece.layers)


@each
def test_same_seed_same_bytes_and_row_mixture_is_harmless(policies: dict[str, LocalPolicy], kind: str) -> None:
    policy = policies[kind]
    settings = [
        GREEDY,
        Sampling(max_new_tokens=5),
        Sampling(top_p=1.0, max_new_tokens=9),
        GREEDY,
        Sampling(max_new_tokens=0),
    ]
    requests = [request_of(text, seed, one) for seed, (text, one) in enumerate(zip(TEXTS, settings, strict=True))]
    first, second = policy.generate(requests), policy.generate(requests)
    assert [reply.model_dump_json() for reply in first] == [reply.model_dump_json() for reply in second]
    for request, reply in zip(requests, first, strict=True):
        assert reply.token_ids == policy.generate([request])[0].token_ids
        assert len(reply.token_ids) == len(reply.logprobs) <= request.sampling.max_new_tokens
    other = policy.generate([request_of(TEXTS[1], 99, Sampling(max_new_tokens=5))])[0]
    assert other.token_ids != first[1].token_ids


@each
def test_logprobs_equal_an_independent_full_forward(policies: dict[str, LocalPolicy], kind: str) -> None:
    policy = policies[kind]
    requests = [request_of(text, seed, Sampling(temperature=0.7, max_new_tokens=10)) for seed, text in enumerate(TEXTS)]
    for request, reply in zip(requests, policy.generate(requests), strict=True):
        assert reply.prompt_token_ids == policy.encode(request.prompt).token_ids
        whole = torch.tensor([[*reply.prompt_token_ids, *reply.token_ids]])
        with torch.no_grad():
            logits = policy.model(input_ids=whole).logits[0].double()
        start = len(reply.prompt_token_ids) - 1
        expected = logits.log_softmax(-1)[start : start + len(reply.token_ids)]
        picked = expected.gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        assert np.allclose(reply.logprobs, picked.numpy(), atol=1e-4)


@each
def test_stops_at_every_end_token(policies: dict[str, LocalPolicy], kind: str) -> None:
    policy = policies[kind]
    n_requests = 300
    prompt = policy.encode(request_of("a").prompt).token_ids
    hot = Sampling(temperature=4.0, top_p=1.0, max_new_tokens=30)
    replies = policy.generate_ids([prompt] * n_requests, hot, list(range(n_requests)))
    ended = Counter(reply[-1] for reply in replies if reply[-1] in policy.end_ids)
    assert set(ended) == set(policy.end_ids)
    assert len(policy.end_ids) == (2 if kind == "llama" else 1)
    for reply in replies:
        assert policy.end_ids.isdisjoint(reply[:-1])
        assert len(reply) == 30 or reply[-1] in policy.end_ids


def test_finish_and_text_leave_the_end_token_out(policies: dict[str, LocalPolicy]) -> None:
    policy = policies["llama"]
    hot = Sampling(temperature=4.0, top_p=1.0, max_new_tokens=40)
    replies = policy.generate([request_of("a", seed, hot) for seed in range(60)])
    assert {reply.finish for reply in replies} == {"stop", "length"}
    for reply in replies:
        assert (reply.finish == "stop") == (reply.token_ids[-1] in policy.end_ids)
        assert "<|eot_id|>" not in reply.text and "<|end_of_text|>" not in reply.text
        assert reply.policy_version == policy.version


def test_generate_ids_is_the_served_path_and_restores_training_mode(policies: dict[str, LocalPolicy]) -> None:
    policy = policies["lfm2"]
    sampling = Sampling(max_new_tokens=8)
    requests = [request_of(text, seed, sampling) for seed, text in enumerate(TEXTS)]
    served = [reply.token_ids for reply in policy.generate(requests)]
    policy.model.train()
    threads = torch.get_num_threads()
    prompts = [policy.encode(request.prompt).token_ids for request in requests]
    assert policy.generate_ids(prompts, sampling, range(len(prompts))) == served
    assert policy.model.training and torch.get_num_threads() == threads
    policy.model.eval()
    assert policy.generate([]) == []


def chi_square(counts: np.ndarray, probability: np.ndarray) -> float:
    expected = counts.sum() * probability
    return float((((counts - expected) ** 2) / expected).sum())


def test_sampling_follows_the_distribution_and_top_p_its_support() -> None:
    logits = torch.log(torch.tensor([0.05, 0.4, 0.02, 0.3, 0.13, 0.1]))
    n = 20000
    for temperature, top_p, support in ((1.0, 1.0, 6), (0.5, 1.0, 6), (1.0, 0.75, 3), (1.0, 0.95, 5), (2.0, 0.3, 2)):
        setting = Sampling(temperature=temperature, top_p=top_p)
        sampler = Sampler([setting] * n, list(range(n)), 1, torch.device("cpu"))
        drawn = sampler.draw(logits.expand(n, -1), torch.arange(n), 0).numpy()
        probability = torch.softmax(logits.double() / temperature, -1).numpy()
        order = np.argsort(-probability, kind="stable")
        keep = order[: int(np.searchsorted(np.cumsum(probability[order]), top_p - 1e-6)) + 1] if top_p < 1 else order
        assert len(keep) == support and set(drawn.tolist()) == set(keep.tolist())
        counts = np.bincount(drawn, minlength=6)[keep]
        # 99.9 % point of chi-square with 5 degrees of freedom
        assert chi_square(counts, probability[keep] / probability[keep].sum()) < 20.5


def test_uniforms_are_counter_based() -> None:
    short, long = uniforms([7, -1, 2**70], 3), uniforms([2**70, 7], 9)
    assert np.array_equal(short[0], long[1, :3]) and np.array_equal(short[2], long[0, :3])
    assert (short >= 0).all() and (short < 1).all()


def test_served_first_tokens_follow_the_models_distribution(policies: dict[str, LocalPolicy]) -> None:
    policy, n = policies["qwen3"], 4000
    prompt = policy.encode(request_of("zora late").prompt).token_ids
    setting = Sampling(top_p=1.0, max_new_tokens=1)
    drawn = [reply[0] for reply in policy.generate_ids([prompt] * n, setting, list(range(n)))]
    with torch.no_grad():
        probability = policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy()
    counts = np.bincount(drawn, minlength=len(probability))
    common = probability * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probability[common], probability[~common].sum())
    freedom = len(observed) - 1
    assert chi_square(observed, expected) < freedom + 4 * (2 * freedom) ** 0.5


def test_protocols_and_registry(policies: dict[str, LocalPolicy], root: Path) -> None:
    assert isinstance(policies["lfm2"], TrainablePolicy)
    scripted = open_policy(PolicyParams(backend="scripted"))
    assert isinstance(scripted, TokenPolicy) and not isinstance(scripted, TrainablePolicy)
    opened = open_policy(PolicyParams(path=str(checkpoints.cached("lfm2", root))), version="round-001")
    assert isinstance(opened, LocalPolicy) and opened.version == "round-001"


def test_scripted_policy_has_tokens_and_needs_no_torch() -> None:
    import subprocess
    import sys

    policy = ScriptedPolicy(lambda prompt, request: f"say {request.seed}")
    reply = policy.generate([request_of("zora", 3)])[0]
    assert reply.text == "say 3" == policy.decode(reply.token_ids)
    assert len(reply.token_ids) == len(reply.logprobs) and reply.prompt_token_ids
    assert ScriptedPolicy().generate([request_of("zora")])[0].text == "zora"
    code = "import sys, opd_evolver.policy.registry as r; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scripted_hindsight_changes_nothing_outside_its_span() -> None:
    policy: Any = ScriptedPolicy()
    parts = (Segment(text="act"), Segment(text="task zora"))
    hint = Segment(text="hint late 4", kind="hindsight")

    def encoded(*segments: Segment) -> Any:
        return policy.encode(Prompt(ability="act", messages=(Message(role="user", segments=segments),)))

    student = encoded(*parts).token_ids
    for place in range(3):
        teacher = encoded(*parts[:place], hint, *parts[place:])
        ((start, end),) = teacher.hindsight_spans
        assert teacher.token_ids[:start] + teacher.token_ids[end:] == student


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 learned positions: beyond them it has none."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder, tokenizer = tmp_path_factory.mktemp("learned"), checkpoints.qwen3_tokenizer()
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reply_beyond_the_models_positions_is_a_clear_error(
    learned: Path, policies: dict[str, LocalPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies["qwen3"], "_positions", 4)
    assert policies["qwen3"].generate([request_of("a")])[0].token_ids, "rotary embeddings go on"
    policy = LocalPolicy.load(learned, max_prompt_tokens=64)
    long = next(made for n in range(99) if len(policy.encode((made := request_of("a " * n)).prompt).token_ids) == 54)
    with pytest.raises(SetupError, match=r"102 tokens of a prompt.*at most 64, the model's positions.*max_prompt_tok"):
        policy.generate([request_of("a"), long.model_copy(update={"sampling": Sampling(max_new_tokens=48)})])
    fits = long.model_copy(update={"sampling": Sampling(max_new_tokens=10)})
    assert len((alone := policy.generate([fits])[0]).token_ids) == 10
    # A row that is done early goes on in its batch, and has no positions there.
    beside = [request_of("a", seed, Sampling(max_new_tokens=40)) for seed in range(7)]
    assert policy.generate([fits, *beside])[0].token_ids == alone.token_ids


def test_a_run_that_needs_more_positions_is_known_before_it_is_begun(learned: Path) -> None:
    check_positions(learned, prompt=50, reply=14)
    with pytest.raises(SetupError, match=r"= 51: with a reply of 14 up to 65 tokens.*at most 64.*max_prompt_tokens=50"):
        check_positions(learned, prompt=51, reply=14)
    with pytest.raises(SetupError, match="lower fast"):
        check_positions(learned, prompt=1, reply=64)
    with pytest.raises(SetupError, match="the model's positions"):
        prepare.check(merge(load_preset("micro"), {"policy.path": str(learned), "policy.max_prompt_tokens": 60}, "t"))


@pytest.mark.parametrize("name", PRESETS)
def test_the_policy_of_every_preset_has_positions_for_it(name: str) -> None:
    params = load_preset(name)
    limit, fast = params.policy.max_prompt_tokens, params.fast
    reply = max(fast.act_max_new_tokens, fast.select_max_new_tokens, fast.write_max_new_tokens)
    if params.policy.path == "seed":
        check_positions("seed", prompt=limit, reply=reply)
    else:
        assert limit + reply <= 40960, "Qwen3-4B's"
