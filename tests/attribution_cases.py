"""Entries, rows and ledgers for the attribution tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from opd_evolver.records import Candidate, Entry, LedgerRow, SkillContent, TipContent, ToolContent


def entry(name: str, level: str = "tip", sources: Sequence[str] = ()) -> Entry:
    content: Any = {
        "tip": TipContent(text="4", trigger=name),
        "skill": SkillContent(description=name, steps=("a",)),
        "tool": ToolContent(name=name, language="x", code="y"),
    }[level]
    return Entry(entry_id=name, domain="d", scope="s", content=content, created_round=1, source_episodes=tuple(sources))


def row(name: str, group: str, outcome: float, candidates: str, selected: str = "", **changes: Any) -> LedgerRow:
    """`candidates` and `selected` are space-separated entry names; what is selected is injected."""
    chosen = tuple(selected.split())
    fields: dict[str, Any] = {
        "rollout_id": name,
        "round": 1,
        "wave": 1,
        "task_id": f"t-{name}",
        "domain": "d",
        "scope": "s",
        "group": group,
        "task_text": "x",
        "candidates": tuple(Candidate(handle=i, entry_id=m, score=1.0) for i, m in enumerate(candidates.split(), 1)),
        "selected": chosen,
        "injected": chosen,
        "episode_return": outcome,
        "success": outcome == 1.0,
        "turns": (),
        "calls": (),
        "n_prompt_tokens": 0,
        "n_reply_tokens": 0,
        "policy_version": "p",
        "renderer": "r",
    }
    return LedgerRow(**{**fields, **changes})


NAMES = ("m0", "m1", "m2", "m3")


CHANCES = st.sampled_from((0.5, 0.5, 0.8, 0.9, 1.0))


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[list[LedgerRow], list[Entry]]:
    subsets = st.lists(st.sampled_from(NAMES), unique=True)
    rows = []
    for number in range(draw(st.integers(0, 24))):
        candidates = draw(subsets)
        selected = [m for m in candidates if draw(st.booleans())]
        injected = [m for m in selected if draw(st.integers(0, 2))]
        rows.append(
            row(
                f"r{number}",
                draw(st.sampled_from("ghk")),
                draw(st.sampled_from((0.0, 0.25, 0.5, 1.0))),
                " ".join(candidates),
                " ".join(selected),
                injected=tuple(injected),
                withheld=tuple(m for m in selected if m not in injected),
                propensities={m: draw(CHANCES) for m in selected} if draw(st.integers(0, 5)) else {},
                created=tuple(draw(subsets)) if draw(st.integers(0, 3)) == 0 else (),
                select_fallback=draw(st.integers(0, 5)) == 0,
                wave=draw(st.integers(0, 2)),
            )
        )
    levels = ("tip", "skill", "tool")
    episodes = st.lists(st.sampled_from([f"r{n}" for n in range(24)]), max_size=2)
    return rows, [entry(m, draw(st.sampled_from(levels)), draw(episodes)) for m in NAMES]
