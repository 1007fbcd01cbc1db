"""Outcome-calibrated attribution: V(m), what a memory entry turned out to be worth.

Between the loops: the fast loop's ledger goes in, the slow loop's hindsight comes out. `evidence` turns
rows into arrays, one of `VARIANTS` values the entries on them, `attribute` does both. docs/attribution.md
compares the variants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from opd_evolver.errors import SetupError
from opd_evolver.memory.attribution.causal import causal
from opd_evolver.memory.attribution.estimate import Estimate, Estimator
from opd_evolver.memory.attribution.evidence import Creators, Floats, Pairs, creators, evidence
from opd_evolver.memory.attribution.paper import paper
from opd_evolver.memory.attribution.released import released
from opd_evolver.memory.attribution.uniform import uniform
from opd_evolver.params import AttributionParams
from opd_evolver.records import Attribution, Entry, LedgerRow

__all__ = [
    "VARIANTS",
    "Estimate",
    "Estimator",
    "Pairs",
    "attribute",
    "creators",
    "evidence",
    "latest_rounds",
    "sure",
]

VARIANTS: dict[str, Estimator] = {"paper": paper, "released": released, "causal": causal, "uniform": uniform}


def attribute(rows: Sequence[LedgerRow], entries: Sequence[Entry], params: AttributionParams) -> dict[str, Attribution]:
    """V(m) = alpha_level * gamma * A by the variant that `attribution.variant` names.

    gamma = 1 - 1/sqrt(1 + N+). The 95 % interval of A is scaled alike; alpha and gamma are taken as given.

    Args:
        rows: the ledger, in any order.
        entries: every entry that a row shows, retired ones included.
        params: the variant, alpha per level, and what counts as evidence: the latest rounds (all where an entry has
            none in them), the tasks that it was selected for.

    Returns:
        One `Attribution` per entry, in the entries' order: `n_selected` is N+, `n_withheld` the other side,
        both over the contributing groups; `per_group` is the difference in each; `value` is None (never 0.0)
        without evidence.

    Raises:
        CorruptionError: a row names an unknown entry; roll back to a snapshot that verifies.
        SetupError: unknown variant, or no alpha for a level; set `attribution.variant` or `.alpha`.

    Paper: outcome-calibrated attribution.
    """
    variant = VARIANTS.get(params.variant)
    if variant is None:
        raise SetupError(f"attribution.variant {params.variant}", " | ".join(VARIANTS), "set attribution.variant")
    alphas = _alphas(entries, params)
    # Of all rows: who first wrote an entry is no matter of which rows are evidence.
    made = creators(rows, entries)
    every = _valued(variant, rows, entries, made, alphas, params)
    if not params.rounds:
        return every
    latest = latest_rounds(rows, params.rounds)
    recent = [row for row in rows if row.round in latest]
    # What a convention was worth before it changed says nothing of now; where nothing is known of now, it must do.
    now = _valued(variant, recent, entries, made, alphas, params)
    return {name: one if one.value is not None else every[name] for name, one in now.items()}


def latest_rounds(rows: Iterable[LedgerRow], n: int) -> frozenset[int]:
    """The latest `n` rounds of a ledger. A refused round's part is put away, so its number is missing there."""
    return frozenset(sorted({row.round for row in rows})[-n:])


def sure(attributions: Mapping[str, Attribution]) -> dict[str, Attribution]:
    """Those whose 95 % interval leaves out 0: of a few rollouts the sign of V is mostly luck."""
    return {
        name: one
        for name, one in attributions.items()
        if one.low is not None and one.high is not None and (one.low > 0.0 or one.high < 0.0)
    }


def _valued(
    variant: Estimator,
    rows: Sequence[LedgerRow],
    entries: Sequence[Entry],
    made: Creators,
    alphas: Floats,
    params: AttributionParams,
) -> dict[str, Attribution]:
    pairs = evidence(rows, entries, asked_only=params.asked_only, made=made)
    return _records(variant(pairs, len(entries)), pairs.groups, entries, alphas, params.variant)


def _records(
    found: Estimate, groups: Sequence[str], entries: Sequence[Entry], alphas: Floats, variant: str
) -> dict[str, Attribution]:
    scale = alphas * (1.0 - 1.0 / np.sqrt(1.0 + found.n_plus))
    half = found.quantile * scale * found.error
    per_group: list[dict[str, float]] = [{} for _ in entries]
    for place, group, delta in zip(found.entry.tolist(), found.group.tolist(), found.delta.tolist(), strict=True):
        per_group[place][groups[group]] = delta
    out: dict[str, Attribution] = {}
    for i, entry in enumerate(entries):
        value, width = float(scale[i] * found.advantage[i]), float(half[i])
        seen, bounded = bool(found.n_plus[i]), bool(found.n_plus[i]) and not np.isnan(width)
        out[entry.entry_id] = Attribution(
            entry_id=entry.entry_id,
            value=value if seen else None,
            low=value - width if bounded else None,
            high=value + width if bounded else None,
            advantage=float(found.advantage[i]) if seen else None,
            n_selected=int(found.n_plus[i]),
            n_withheld=int(found.n_minus[i]),
            per_group=per_group[i],
            variant=variant,
        )
    return out


def _alphas(entries: Sequence[Entry], params: AttributionParams) -> Floats:
    """[E] alpha of each entry's level."""
    missing = sorted({entry.level for entry in entries} - params.alpha.keys())
    if missing:
        raise SetupError(f"no alpha for {', '.join(missing)}", "one per level", f"set attribution.alpha.{missing[0]}")
    return np.array([params.alpha[entry.level] for entry in entries], dtype=np.float64)
