"""What `opd try` prints: every call, a table by task, the estimate of a full round."""

from __future__ import annotations

from opd_evolver.benchmark.trial import Trial
from opd_evolver.records import MAINTAIN


def report(trial: Trial, *, calls: bool = True) -> str:
    """Plain text: every call, then the table and the estimate."""
    lines = []
    for number, call in enumerate(trial.calls if calls else (), start=1):
        cut = " · cut by the token limit" if call.finish == "length" else ""
        lines += [
            f"── call {number} · {call.ability} · {call.n_prompt_tokens} + {call.n_reply_tokens} tokens{cut} ──",
            call.prompt,
            *([f"── thought ──\n{call.reasoning}"] if call.reasoning else []),
            f"── reply ──\n{call.reply}",
            "",
        ]
    lines.append("task                               success  return  steps  unreadable (select act write maintain)")
    for one in trial.tried:
        bad = " ".join(str(one.unreadable[name]) for name in ("select", "act", "write", "maintain"))
        won = "–" if one.task_id == MAINTAIN else ("yes" if one.success else "no")
        lines.append(f"{one.task_id[:34]:<34} {won:<8} {one.episode_return:<7.2f} {one.n_steps:<6} {bad}")
    n_tokens = trial.n_prompt_tokens + trial.n_reply_tokens
    speed = f"{n_tokens / trial.seconds:.0f}" if trial.seconds else "–"
    lines.append(
        f"{len(trial.calls)} calls of {trial.policy_version} in {trial.dialect}: {trial.n_prompt_tokens} prompt and "
        f"{trial.n_reply_tokens} reply tokens in {trial.seconds:.1f} s ({speed} tokens/s), "
        f"{trial.n_entries} memories, at most {trial.peak_bytes / 2**20:.0f} MiB"
    )
    full = trial.round
    if not full:
        return printable("\n".join((*lines, "ended by an error before its end: no full round is estimated")))
    trained = full["training_bytes_without_activations"]
    lines.append(
        f"a full fast loop: {full['rollouts']:.0f} rollouts, about {full['prompt_tokens']:,.0f} prompt and "
        f"{full['reply_tokens']:,.0f} reply tokens, {full['seconds_one_by_one'] / 60:.0f} min if one after another "  # type: ignore[operator]
        "(batches are faster)"
    )
    lines.append(
        "training: an endpoint cannot be trained"
        if trained is None
        else f"training: at least {trained / 2**20:,.0f} MiB for weights, gradients and AdamW, and activations on top"
    )
    served = full["serving_bytes_without_activations"]
    if served is not None:
        lines.append(
            f"serving {full['episodes_together']:.0f} episodes together: up to {served / 2**20:,.0f} MiB of weights, "
            "keys and values, and a forward pass on top"
        )
    return printable("\n".join(lines))


def printable(text: str) -> str:
    """Text of others as a terminal may be shown it: what would command it, or forge a line, stands as its escape."""
    return "".join(one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in text)
