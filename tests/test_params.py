"""Parameters: presets, overrides, errors that name the nearest key, what enters the digest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from opd_evolver.errors import SetupError
from opd_evolver.params import PRESETS, Params, flat, load, load_preset, merge, parse_set, read_yaml, validate

PROJECT = Path(__file__).parents[1]
MIXTURE, WEIGHTS, ALPHA = Params().slow.mixture, Params().slow.weights, Params().attribution.alpha


def test_params_yaml_is_the_laptop_preset_and_explains_every_key() -> None:
    path = PROJECT / "params.yaml"
    assert load(path) == load_preset("laptop")
    given = read_yaml(path)
    assert flat(given).keys() == flat(Params().model_dump(mode="json")).keys()
    for line in path.read_text().splitlines():
        assert not line or line.startswith("#") or "  # " in line, line


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_names_itself(name: str) -> None:
    assert load(preset=name).preset == name


def test_a_preset_that_extends_another_differs_where_it_says_so() -> None:
    laptop, evidence = (flat(load_preset(name).model_dump(mode="json")) for name in ("laptop", "evidence"))
    assert {key for key in laptop if laptop[key] != evidence[key]} == {
        "preset",
        "fast.rollouts_per_task",
        "slow.steps",
        "slow.anchor_examples",
        "slow.weights.write",
        "slow.interpolation",
        "benchmark.probe_tasks_per_domain",
    }


def test_presets_load_without_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from opd_evolver.params import PRESETS, load_preset\n"
        "import opd_evolver, opd_evolver.records, opd_evolver.errors\n"
        "print([load_preset(name).digest() for name in PRESETS] and sorted({m.split('.')[0] for m in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(eval(done.stdout))
    heavy = {"torch", "transformers", "prefect", "mlflow", "dvc", "pandas", "great_expectations", "weaviate", "peft"}
    assert "pydantic" in imported and not imported & heavy


def test_the_gpu_preset_holds_the_papers_values() -> None:
    params = load_preset("qwen3-4b-1gpu")
    lora = params.slow.lora
    assert (lora.r, lora.alpha, lora.dropout) == (32, 64, 0.05)
    assert lora.targets == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    slow = params.slow
    assert (slow.adapter, slow.learning_rate, slow.warmup_fraction) == ("lora", 1e-5, 0.05)
    assert (slow.weight_decay, slow.clip_norm, slow.temperature, slow.top_p) == (0.01, 1.0, 1.0, 0.95)
    assert sum(slow.mixture.values()) == 16 and params.policy.dtype == "bfloat16"
    assert (params.policy.max_prompt_tokens, params.fast.act_max_new_tokens) == (8192, 1024)
    assert (params.memory.candidates, params.memory.max_selected, params.memory.budget_unit) == (50, 20, "tokens")
    assert (params.fast.max_steps, params.fast.maintain_every_tasks) == (40, 30)
    assert (params.fast.temperature, params.fast.top_p) == (1.0, 0.95)
    assert params.attribution.alpha == {"trajectory": 0.9, "tip": 0.8, "skill": 1.0, "tool": 1.2}
    assert params.attribution.threshold == 0.01
    assert params.flows.placement == "subprocess"


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("fast.wave_task", "fast.wave_tasks"),
        ("slow.lerning_rate", "slow.learning_rate"),
        ("slow.mixture.atc", "slow.mixture.act"),
        ("round", "rounds"),
        ("fats.wave_tasks", "fast.wave_tasks"),
        ("policy.path.name", "policy.path"),
    ],
)
def test_a_misspelt_override_names_the_nearest_key(key: str, nearest: str) -> None:
    with pytest.raises(SetupError, match=f"unknown parameter `{key}` in --set.*did you mean `{nearest}`") as error:
        merge(Params(), {key: 1}, "--set")
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tree, said",
    [
        ({"fast": {"wave_task": 1}}, "unknown parameter `fast.wave_task` in here.*`fast.wave_tasks`"),
        ({"fsat": {}}, "unknown parameter `fsat`"),
        ({"rounds": 0}, "`rounds` = 0 in here; expected Input should be greater than 0"),
        ({"rounds": "many"}, "`rounds` = 'many'"),
        ({"fast": 3}, "`fast` = 3"),
        ({"memory": {"alpha": float("nan")}}, "`memory.alpha` = nan"),
        ({"slow": {"learning_rate": float("inf")}}, "`slow.learning_rate` = inf"),
        ({"policy": {"backend": "remote"}}, "'local', 'scripted' or 'endpoint'"),
        ({"environments": {"domains": []}}, "`environments.domains`"),
        ({"environments": {"domains": ["sql", "apps", "sql"]}}, "`environments.domains`.*each name once, not `sql`"),
        ({"slow": {"mixture": {"act": 4, "wirte": 1}}}, "`slow.mixture`.*exactly the keys select, act, write"),
        ({"slow": {"mixture": {**dict.fromkeys(MIXTURE, 0), "anchor": 2}}}, "`slow.mixture`.*at least one of"),
        ({"attribution": {"variant": "uniform", "sure": True}}, "`attribution.sure` = True.*attribution.sure=false"),
        ({"slow": {"weights": {"act": 1.0}}}, "`slow.weights`.*exactly the keys"),
        ({"attribution": {"alpha": {"tips": 1.0}}}, "`attribution.alpha`.*trajectory, tip, skill, tool"),
        ({"slow": {"mixture": {**MIXTURE, "act": -1}}}, "`slow.mixture.act` = -1 .*greater than or equal to 0"),
        ({"slow": {"weights": {**WEIGHTS, "write": -0.3}}}, "`slow.weights.write` = -0.3 .*greater than or equal to 0"),
        ({"attribution": {"alpha": {**ALPHA, "tip": -1.0}}}, "`attribution.alpha.tip` = -1.0 .*greater than or equal"),
    ],
)
def test_wrong_values_say_where_and_what_was_expected(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(SetupError, match=said) as error:
        validate(tree, "here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pair", ["rounds", "=3", "seed=[", "seed={", "a=!!python/object:os.system"])
def test_a_malformed_set_is_one_line(pair: str) -> None:
    with pytest.raises(SetupError, match="--set") as error:
        merge(Params(), parse_set([pair]), "--set")
    assert "\n" not in str(error.value)


def test_set_values_are_yaml_and_later_ones_win() -> None:
    found = parse_set(["rounds=1", "rounds=2", "memory.scope_filter=false", "environments.domains=[sql]"])
    params = merge(Params(), found, "--set")
    assert (params.rounds, params.memory.scope_filter, params.environments.domains) == (2, False, ("sql",))
    mixed = merge(Params(), {"slow.mixture.act": 3}, "--set")
    assert mixed.slow.mixture == {**Params().slow.mixture, "act": 3}
    assert merge(Params(), {"slow": {"steps": 5}}, "--set").slow.steps == 5


@pytest.mark.parametrize(
    "dotted, nested",
    [
        ("fast.wave_tasks=1", "fast={wave_tasks: 1}"),
        ("slow.lora.r=4", "slow={lora: {r: 4}}"),
        ("slow.lora.r=4", "slow.lora={r: 4}"),
        ("slow.mixture.act=3", "slow={mixture.act: 3}"),
        ("environments.headroom.drift=0.5", "environments={headroom: {drift: 0.5}}"),
    ],
)
def test_an_override_of_a_section_is_that_of_the_keys_it_names(dotted: str, nested: str) -> None:
    params = load_preset("qwen3-4b-1gpu")  # which differs from the defaults in every section
    one, other = (merge(params, parse_set([pair]), "--set") for pair in (dotted, nested))
    assert one == other != params
    assert merge(params, parse_set(["slow={}"]), "--set") == params


def test_an_override_of_a_section_misspells_no_key_and_leaves_none_out_of_a_mapping() -> None:
    with pytest.raises(SetupError, match=r"unknown parameter `slow\.lora\.R` in --set.*did you mean `slow\.lora\.r`"):
        merge(Params(), {"slow": {"lora": {"R": 1}}}, "--set")
    for overrides in ({"slow": {"mixture": {"act": 4}}}, {"slow.mixture": {"act": 4}}):
        with pytest.raises(SetupError, match=r"`slow\.mixture`.*exactly the keys"):
            merge(Params(), overrides, "--set")


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "no file"),
        ("- 1\n", "holds list"),
        ("", "holds NoneType"),
        ("a: [", "is not YAML"),
        (b"\xff\xfe", "is not YAML"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path: Path, text: str | bytes | None, said: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SetupError, match=said) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SetupError, match="did you mean `laptop`"):
        load(preset="labtop")


def test_a_presets_name_is_no_way_to_take_its_values(tmp_path: Path) -> None:
    for overrides in ({"preset": "micro"}, {"preset": "laptop"}):
        with pytest.raises(SetupError, match=r"`preset` in --set.*use --preset NAME"):
            load(preset="laptop", overrides=overrides)
    path = tmp_path / "params.yaml"
    path.write_text("preset: labtop\nrounds: 1\n")
    with pytest.raises(SetupError, match=r"unknown preset `labtop` in .*params\.yaml; expected micro \| laptop"):
        load(path)
    # What a run of its own time wrote down is read as it stands.
    assert validate({"preset": "of-an-older-version"}, "run.json").preset == "of-an-older-version"


# ── the digest ────────────────────────────────────────────────────────────────────────────────

EVERY = flat(Params().model_dump(mode="json", exclude={"flows", "rounds", "preset"}))
ONE_CHOICE = {"slow.teacher"}


@pytest.mark.parametrize("change", [{"rounds": 9}, {"flows.shards": 3}, {"flows.placement": "subprocess"}])
def test_what_changes_no_result_enters_no_digest(change: dict[str, Any]) -> None:
    assert merge(Params(), change, "test").digest() == Params().digest()
    assert Params().model_copy(update={"preset": "other"}).digest() == Params().digest()


@pytest.mark.parametrize("key", sorted(EVERY.keys() - ONE_CHOICE))
def test_every_science_parameter_enters_the_digest(key: str) -> None:
    value = EVERY[key]
    others = {
        "memory.store": "weaviate",
        "memory.selector": "ranking",
        "slow.objective": "sft",
        "policy.backend": "scripted",
        "policy.dialect": "instruct",
        "memory.budget_unit": "tokens",
        "attribution.variant": "causal",
        "policy.dtype": "bfloat16",
        "slow.hindsight": "empty",
        "slow.adapter": "lora",
        "benchmark.protocol": "streaming",
    }
    if isinstance(value, bool):
        changed: Any = not value
    elif isinstance(value, str):
        changed = others.get(key, f"{value}x")
    elif isinstance(value, list):
        changed = value[:1] if len(value) > 1 else [*value, "skill"]
    else:
        changed = (value / 2 or 0.5) if isinstance(value, float) else value + 1
    assert merge(Params(), {key: changed}, "test").digest() != Params().digest()


def test_the_digest_survives_the_way_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    params = load_preset("micro")
    path.write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=True))
    assert load(path) == params and load(path).digest() == params.digest()
