"""The sections of params.yaml: every science parameter with its type, bounds and default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from opd_evolver.records import ABILITIES, LEVELS, Level


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _exactly(*names: str) -> AfterValidator:
    """A mapping with these keys: a misspelt or forgotten one would silently count as nothing."""

    def check(found: dict[str, Any]) -> dict[str, Any]:
        if wrong := sorted(found.keys() ^ set(names)):
            raise PydanticCustomError("keys", "exactly the keys {names}", {"names": ", ".join(names), "wrong": wrong})
        return found

    return AfterValidator(check)


def _distinct(found: tuple[str, ...]) -> tuple[str, ...]:
    """A name that stands twice would give every task of it twice under one id."""
    if repeated := sorted({name for name in found if found.count(name) > 1}):
        raise PydanticCustomError("repeated", "each name once, not `{repeated}` again", {"repeated": repeated[0]})
    return found


def _of_something(found: dict[str, int]) -> dict[str, int]:
    """Batches of no example, or of anchors alone, would teach nothing."""
    if not any(found[name] for name in ABILITIES):
        raise PydanticCustomError("nothing", "at least one of {names} above 0", {"names": ", ".join(ABILITIES)})
    return found


ByLevel = _exactly(*LEVELS)
BySource = _exactly(*ABILITIES, "anchor")


DialectName = Literal["terse", "instruct"]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Mixture = Annotated[dict[str, Count], BySource, AfterValidator(_of_something)]


class LoraParams(Section):
    """Paper: r 32, alpha 64, dropout 0.05 on q,k,v,o,gate,up,down."""

    r: int = Field(32, gt=0)
    alpha: int = Field(64, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class PolicyParams(Section):
    """Which policy evolves. `path` is a folder in Hugging Face form, `seed` for the one in the package, or with
    the backend `endpoint` the id under which the server knows its model.
    """

    backend: Literal["local", "scripted", "endpoint"] = "local"
    path: str = "seed"
    dtype: Literal["float32", "bfloat16"] = "float32"
    dialect: DialectName = "terse"
    max_prompt_tokens: int = Field(768, gt=0)
    threads: int = Field(1, gt=0, description="torch threads of a generating process; changes the last bits")
    thinking: bool | None = Field(False, description="of an endpoint's model; null leaves it to the server")


class HeadroomParams(Section):
    """What deployment holds that only outcomes can teach (`environments/headroom.py`); all shares 0: nothing."""

    misleading: float = Field(0.0, ge=0, le=1, description="share of a domain's keys of tips that have exceptions")
    exceptions: float = Field(0.3, ge=0, le=1, description="share of the tasks about such a key that are exceptions")
    drift: float = Field(0.0, ge=0, le=1, description="share of the deployed tips that change during deployment")
    drift_after: int = Field(60, ge=0, description="tasks of deploy-train and domain before they change")
    one_off: float = Field(
        0.0, ge=0, le=1, description="share of the double tasks that ask for what the family has not"
    )
    wording: float = Field(0.0, ge=0, le=1, description="share of the tips that are noted in other words")


NO_HEADROOM = HeadroomParams()


class EnvironmentParams(Section):
    """`levels`: which memory level the families' hidden rules ask for, by turns; beyond tips an order of moves."""

    domains: Annotated[tuple[str, ...], AfterValidator(_distinct)] = Field(("sql", "apps"), min_length=1)
    levels: tuple[Level, ...] = Field(("tip", "skill", "tool", "trajectory"), min_length=1)
    headroom: HeadroomParams = NO_HEADROOM


class MemoryParams(Section):
    """Paper: up to 50 candidates, at most 20 selected. The tiny policy holds fewer."""

    # Science, not site: the stores rank alike, not equally, and what is shown decides what is learnt.
    store: Literal["embedded", "weaviate"] = "embedded"
    embedder: str = "hash-256"
    candidates: int = Field(8, ge=0, le=50)
    max_selected: int = Field(4, ge=0, le=20)
    selector: Literal["policy", "ranking"] = "policy"
    levels: tuple[Level, ...] = Field(LEVELS, description="what may be written; other levels are refused")
    scope_filter: bool = True
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the dense part in hybrid search")
    entry_token_budget: int = Field(80, gt=0)
    candidate_token_budget: int = Field(16, gt=0)
    budget_unit: Literal["words", "tokens"] = "words"


class FastParams(Section):
    """Fast loop: one epoch of waves. Paper: K rollouts a task, Q = 30, at most 40 steps, T 1.0, top-p 0.95."""

    tasks_per_domain: int = Field(120, gt=0)
    rollouts_per_task: int = Field(4, gt=0)
    wave_tasks: int = Field(40, gt=0)
    microbatch_rollouts: int = Field(32, gt=0)
    max_steps: int = Field(40, gt=0)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    act_max_new_tokens: int = Field(48, gt=0)
    select_max_new_tokens: int = Field(24, gt=0)
    write_max_new_tokens: int = Field(64, gt=0)
    write_limit: int = Field(4, ge=0)
    withhold_probability: float = Field(0.1, ge=0, lt=1)
    maintain_every_tasks: int = Field(30, gt=0)
    maintain_max_steps: int = Field(6, ge=0)
    maintain_episodes: int = Field(
        1, gt=0, lt=100, description="most at a barrier; after the first, while any are in doubt"
    )
    outage_retries: int = Field(3, ge=0)

    @property
    def longest_reply(self) -> int:
        """Tokens of the longest reply of any ability; maintenance has as many as writing."""
        return max(self.act_max_new_tokens, self.select_max_new_tokens, self.write_max_new_tokens)


class AttributionParams(Section):
    variant: Literal["paper", "released", "causal", "uniform"] = "paper"
    threshold: float = Field(0.01, ge=0)
    alpha: Annotated[dict[str, Weight], ByLevel] = {"trajectory": 0.9, "tip": 0.8, "skill": 1.0, "tool": 1.2}
    rounds: int = Field(0, ge=0, description="the latest ones whose rollouts are evidence, where there is any; 0 = all")
    asked_only: bool = Field(False, description="an entry's evidence is from tasks that some rollout selected it for")
    sure: bool = Field(False, description="only a V whose 95 % interval leaves out 0 is told to the teacher")

    @field_validator("sure")
    @classmethod
    def _has_intervals(cls, sure: bool, info: ValidationInfo) -> bool:
        if sure and info.data.get("variant") == "uniform":
            raise PydanticCustomError("silent", "attribution.sure=false: `uniform` has no interval, so nothing is told")
        return sure


class SlowParams(Section):
    """Slow loop. Batches are made of `mixture` examples of each ability; loss means are per ability, then weighted."""

    objective: Literal["forward_kl", "sft"] = "forward_kl"
    teacher: Literal["frozen"] = "frozen"
    hindsight: Literal["full", "empty", "shuffled"] = "full"
    adapter: Literal["full", "lora"] = "full"
    lora: LoraParams = LoraParams()
    steps: int = Field(100, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    mixture: Mixture = {"act": 40, "write": 8, "select": 8, "maintain": 2, "anchor": 20}
    weights: Annotated[dict[str, Weight], BySource] = {
        "act": 1.0,
        "write": 0.3,
        "select": 0.3,
        "maintain": 0.3,
        "anchor": 2.0,
    }
    write_rounds: int = Field(1, ge=1, description="latest rounds whose writings are examples; V of them is today's")
    prefix_weights: bool = Field(False, description="tokens count as far as the teacher would have said those before")
    act_with_memory: float = Field(0.0, ge=0, le=1, description="share of the act examples that keep their memories")
    interpolation: float = Field(1.0, gt=0, le=1, description="of the way to the trained weights that is kept")
    microbatch: int = Field(16, gt=0)
    gradient_checkpointing: bool = Field(False, description="keep no activations: less memory, one more forward pass")
    sample_batch: int = Field(64, gt=0)
    processes: int = Field(1, gt=0, description="that share the examples of a step; changes the last bits")
    threads: int = Field(2, gt=0)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    checkpoint_every: int = Field(50, gt=0)
    anchor_examples: int = Field(512, ge=0)


class BenchmarkParams(Section):
    """Frozen: memory is read-only. Streaming: it grows in test order (W = 1)."""

    protocol: Literal["frozen", "streaming"] = "frozen"
    test_tasks_per_domain: int = Field(100, gt=0)
    val_tasks_per_domain: int = Field(100, gt=0)
    probe_tasks_per_domain: int = Field(60, gt=0)
    batch_rollouts: int = Field(64, gt=0)
    bootstrap_samples: int = Field(2000, gt=0)


class GateParams(Section):
    """Promote iff the lower 95 % bound of (new - champion) > -margin on deploy-val, and likewise for retention."""

    margin: float = Field(0.1, ge=0)
    retention_margin: float = Field(0.2, ge=0)
    max_refusals: int = Field(3, gt=0)


class ContractParams(Section):
    """How far a round may move from the one before; every bound is widened by three standard errors."""

    max_success_drop: float = Field(0.5, ge=0, le=1, description="a greater fall of success stops the round")
    warn_success_drop: float = Field(0.1, ge=0, le=1)
    max_fallback: float = Field(0.5, ge=0, le=1, description="a greater share of unreadable selections stops it")
    tolerance: float = Field(0.5, ge=0, description="relative change of lengths and counts that warns")
    max_level_divergence_nats: float = Field(0.5, ge=0, description="of the levels of what is written; warns")


class FlowParams(Section):
    """Where and how wide things run. Changes no result, hence enters no key.

    Attributes:
        placement: in the flow's process; in one of their own for each step; as deployments; or, what can be done
            at the same time, in as many processes as shards, which stay.
        shards: of a wave.
    """

    placement: Literal["inline", "pool", "subprocess", "deployment"] = "inline"
    shards: int = Field(1, gt=0)
