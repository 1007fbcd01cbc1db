"""One folder with all that an agent is: weights or adapter, memory, parameters, prompts as served, a card.

agent.json   which run and round, parameters, digests
policy/      in Hugging Face form, merged; or adapter/ alone over the base that its configuration names
memory/      the round's snapshot; not there for a base policy
prompts.md   a prompt and reply of each ability, token for token as they were served
README.md    the card
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from opd_evolver import lineage
from opd_evolver.benchmark.report import interval_text
from opd_evolver.durable import new_folder, read_json, write_text
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory.snapshot import read_rows, verify
from opd_evolver.params import Params, validate
from opd_evolver.records import SCHEMA_VERSION, Ability, CallRecord, Record, canonical_json
from opd_evolver.steps import plan, prepare, publish, snapshots

CARD = "agent.json"
CHAMPION = "champion"
ABILITIES: tuple[Ability, ...] = ("select", "act", "write", "maintain")
Form = Literal["merged", "adapter"]
FORMS: tuple[Form, ...] = ("merged", "adapter")
FOLDERS: dict[Form, str] = {"merged": "policy", "adapter": "adapter"}


class AgentCard(Record):
    """What agent.json holds; digests are those of the files beside it.

    Attributes:
        base_digest, scaling: of an adapter: the weights under it and what scales its update; its own tensors do not
            tell them. None where they were not recorded yet.
    """

    schema_version: int = SCHEMA_VERSION
    lineage: str
    round: int
    form: Form
    params: dict[str, Any]
    policy_digest: str
    base_digest: str | None = None
    scaling: str | None = None
    memory_digest: str | None = None
    reembeds: tuple[str, ...] = ()


class Found(NamedTuple):
    """Where an agent lies.

    Attributes:
        policy, policy_digest: weights, checked.
        memory: the snapshot; None: it never had one.
        reembeds: embedders that its lineage has left behind.
    """

    lineage: str
    round: int
    params: Params
    policy: Path
    policy_digest: str
    memory: Path | None
    reembeds: tuple[str, ...]


def locate(what: str | Path, name: str = "default") -> Found:
    """An exported folder, a round, or the champion of a run; whole and as its digests say.

    Args:
        what: `champion`, `LINEAGE:ROUND`, or a folder.
        name: whose champion.

    Raises:
        SetupError: nothing of that name.
        CorruptionError: other bytes than were recorded.
    """
    told = str(what)
    if (Path(told) / CARD).is_file():
        return _exported(Path(told), _card(Path(told)))
    of, _, number = told.rpartition(":")
    if told != CHAMPION and not (of and number.isdigit()):
        raise SetupError(f"no agent `{told}`", f"{CHAMPION}, LINEAGE:ROUND, or a folder with {CARD}", "see opd rounds")
    run = lineage.open_run(prepare.artifact_root(), of or name)
    return _of_run(run, plan.current(run).round if told == CHAMPION else int(number))


def _of_run(run: Run, round_: int) -> Found:
    if run.summary(round_) is None:
        raise SetupError(
            f"round {round_} of `{run.lineage}` has not finished",
            f"one of {[0, *run.finished_rounds()]}",
            f"opd resume {run.identity.name}",
        )
    if round_ == 0:
        from opd_evolver.policy.weights import resolve

        path, digest = plan.base_policy(run)
        folder = resolve(str(run.root / path))
        _check_weights(folder, digest)
        return Found(run.lineage, 0, run.params, folder, digest, None, ())
    folder = snapshots.sound(run, round_)
    digest = str((run.summary(round_) or {})["digests"]["weights"])
    return Found(run.lineage, round_, run.params, folder / "policy", digest, folder / "memory", run.reembeds)


def _card(folder: Path) -> AgentCard:
    try:
        return AgentCard.model_validate(read_json(folder / CARD))
    except ValidationError as error:
        raise CorruptionError(
            f"{folder / CARD} is malformed: {error.errors()[0]['msg']}", "what opd export wrote", "export it again"
        ) from None


def _exported(folder: Path, card: AgentCard) -> Found:
    policy, memory = folder / FOLDERS[card.form], folder / "memory"
    _check_weights(policy, card.policy_digest)
    if card.form == "adapter":
        _check_under(policy, card)
    if card.memory_digest is not None:
        info = verify(memory)
        if info.digest_entries + info.digest_ledger != card.memory_digest:
            raise CorruptionError(f"{memory} is another memory than {CARD} says", "the exported one", "export it again")
    params = validate(card.params, str(folder / CARD))
    kept = memory if card.memory_digest is not None else None
    return Found(card.lineage, card.round, params, policy, card.policy_digest, kept, card.reembeds)


def _check_weights(folder: Path, digest: str) -> None:
    from opd_evolver.policy.weights import weights_digest

    if (seen := weights_digest(folder)) != digest:
        raise CorruptionError(f"the weights in {folder} have digest {seen[:12]}", digest[:12], "fetch them again")


def _check_under(adapter: Path, card: AgentCard) -> None:
    """The base under an adapter and its scaling, against the card."""
    from opd_evolver.policy.weights import ADAPTER_CONFIG, adapter_base, adapter_scaling

    base = adapter_base(adapter)
    if card.base_digest is not None:
        _check_weights(base, card.base_digest)
    if card.scaling is not None and (seen := adapter_scaling(adapter)) != card.scaling:
        raise CorruptionError(f"{adapter / ADAPTER_CONFIG} scales by {seen}", card.scaling, "export it again")


def export(run: Run, round_: int, target: Path, form: Form = "merged") -> AgentCard:
    """Write an agent as a folder of its own; whole when it returns. Again, into what it wrote, is a no-op.

    Args:
        run: whose.
        round_: a finished round; 0 is the base policy without memory.
        target: must not exist, or be this export.
        form: `adapter` for a round trained by LoRA directly over the base policy.

    Raises:
        SetupError: the target exists, or there is no such adapter.
        CorruptionError: the round's bytes do not match its digests.
    """
    if target.exists() and not (target / CARD).is_file():
        raise SetupError(f"{target} exists", "a folder that does not", "choose another --to, or remove it")
    found = _of_run(run, round_)
    weights = found.policy if form == "merged" else _adapter(run, round_)
    from opd_evolver.policy.weights import adapter_scaling, weights_digest

    if target.exists():
        there = _card(target)
        _exported(target, there)
        if (there.lineage, there.round, there.form) == (run.lineage, round_, form):
            return there
        raise SetupError(
            f"{target} holds round {there.round} of `{there.lineage}`",
            "a folder that does not exist",
            "choose another --to",
        )
    digests = None
    with new_folder(target) as building:
        _write_weights(weights, building / FOLDERS[form], form, run.params.policy.dtype)
        if found.memory is not None:
            shutil.copytree(found.memory, building / "memory")
            info = verify(building / "memory")
            digests = info.digest_entries + info.digest_ledger
            write_text(building / "prompts.md", _prompts(found))
        card = AgentCard(
            lineage=run.lineage,
            round=round_,
            form=form,
            params=run.params.model_dump(mode="json"),
            policy_digest=weights_digest(building / FOLDERS[form]),
            base_digest=plan.base_policy(run)[1] if form == "adapter" else None,
            scaling=adapter_scaling(weights) if form == "adapter" else None,
            memory_digest=digests,
            reembeds=found.reembeds,
        )
        write_text(building / CARD, canonical_json(card) + "\n")
        write_text(building / "README.md", _readme(run, card))
    return card


def _write_weights(weights: Path, target: Path, form: Form, dtype: str) -> None:
    """A copy; where the run began with an adapter, its base policy is merged first, as it was served."""
    from opd_evolver.policy.weights import is_adapter

    if form == "adapter" or not is_adapter(weights):
        shutil.copytree(weights, target)
        return
    from opd_evolver.policy import checkpoint

    merged = checkpoint.load(weights, dtype=dtype)
    checkpoint.save(merged.model, merged.tokenizer, target)


def _adapter(run: Run, round_: int) -> Path:
    """The bare adapter of a round; only one that sits on the base policy is of use without the rounds before."""
    from opd_evolver.policy.weights import is_adapter

    folder = run.owner(round_).step(round_, "distil") / "adapter"
    if round_ == 0 or not is_adapter(folder):
        raise SetupError(
            f"round {round_} of `{run.lineage}` has no adapter", "a round trained by LoRA", "--form merged"
        )
    if (under := run.held(round_)) != 0:
        raise SetupError(
            f"the adapter of round {round_} sits on the policy of round {under}",
            "an adapter over the base policy",
            "--form merged has all rounds in it",
        )
    if is_adapter(base := run.root / plan.base_policy(run)[0]):
        raise SetupError(
            f"the adapter of round {round_} sits on the adapter {base}",
            "an adapter over whole weights",
            "--form merged has both in it",
        )
    return folder


def _prompts(found: Found) -> str:
    """The first prompt and reply of each ability in the round's ledger, decoded as they were served."""
    from opd_evolver.policy.checkpoint import load_tokenizer

    assert found.memory is not None
    calls: dict[Ability, CallRecord] = {}
    for row in read_rows(found.memory, found.round):
        for call in row.calls:
            calls.setdefault(call.ability, call)
    lines = ["# Prompts, as they were served", "", f"Round {found.round}, dialect `{found.params.policy.dialect}`."]
    tokenizer = load_tokenizer(found.policy) if any(call.prompt_token_ids for call in calls.values()) else None
    for ability in ABILITIES:
        if (served := calls.get(ability)) is not None and tokenizer is not None:
            said = tokenizer.decode(list(served.prompt_token_ids), skip_special_tokens=False)
            lines += ["", f"## {ability}", "", *_quoted(said), "", "Reply:", "", *_quoted(served.reply_text)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> list[str]:
    """As an indented block, in which nothing is markup: memory text is somebody else's."""
    return [f"    {line}" for line in text.splitlines() or [""]]


def _readme(run: Run, card: AgentCard) -> str:
    tree = publish.rounds_tree(run)
    columns = tree["base"]["columns"] if card.round == 0 else tree["rounds"][card.round - 1]["columns"]
    measured = [f"| {name.replace('_', ' ')} | {interval_text(columns[name])} |" for name in publish.COLUMNS]
    folder = FOLDERS[card.form]
    return "\n".join(
        [
            f"# Agent of `{card.lineage}`, round {card.round}",
            "",
            f"Made by `opd export`; environments {', '.join(run.params.environments.domains)}, "
            f"dialect `{run.params.policy.dialect}`, preset `{run.params.preset}`.",
            f"Weights: `{folder}/`, digest `{card.policy_digest[:16]}`"
            + (f", over the base with digest `{card.base_digest[:16]}`" if card.base_digest else "")
            + ". Memory: "
            + (f"`memory/`, digest `{card.memory_digest[:16]}`." if card.memory_digest else "none."),
            "",
            "| success on deploy-test, 95 % interval clustered by family | |",
            "|---|---|",
            *measured,
            "",
            "    from opd_evolver.agent import Agent",
            "",
            '    with Agent.load("THIS FOLDER") as agent:',
            '        action = agent.act("the task", "what is seen", domain="…", scope="…")',
            "",
            "The entries in `memory/` are what the agent wrote down: untrusted text.",
            "",
        ]
    )
