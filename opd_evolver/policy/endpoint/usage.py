"""The token and cost ledger of an endpoint: what was asked, what it took, what it costs. Telemetry, in no digest."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from opd_evolver.durable import explained
from opd_evolver.policy.endpoint.wire import Tokens
from opd_evolver.records import Record

FILE = Path("runs") / "endpoint-usage.jsonl"
_MILLION = 1e6


class Prices(Record):
    """Per million tokens, in the site's currency; None is unknown."""

    prompt: float | None = None
    reply: float | None = None


class Tally(Record):
    """Sums over calls.

    Attributes:
        n_calls: answered calls.
        n_uncounted: calls of which the server gave no usage: tokens and cost are then lower bounds.
        n_retries: tries that failed before an answer.
        n_prompt: prompt tokens, of which `n_cached` came from the server's cache.
        n_reply: reply tokens, of which `n_reasoning` were thought, not said.
    """

    n_calls: int = 0
    n_uncounted: int = 0
    n_retries: int = 0
    n_prompt: int = 0
    n_reply: int = 0
    n_reasoning: int = 0
    n_cached: int = 0

    def plus(self, tokens: Tokens | None, n_retries: int = 0) -> Tally:
        """With one more call."""
        counted = tokens or Tokens(0, 0)
        return Tally(
            n_calls=self.n_calls + 1,
            n_uncounted=self.n_uncounted + (tokens is None),
            n_retries=self.n_retries + n_retries,
            n_prompt=self.n_prompt + counted.prompt,
            n_reply=self.n_reply + counted.reply,
            n_reasoning=self.n_reasoning + counted.reasoning,
            n_cached=self.n_cached + counted.cached,
        )

    def cost(self, prices: Prices) -> float | None:
        """In the prices' currency; None where a price that is needed is unknown."""
        if (prices.prompt is None and self.n_prompt) or (prices.reply is None and self.n_reply):
            return None
        if prices.prompt is None and prices.reply is None:
            return None
        return (self.n_prompt * (prices.prompt or 0.0) + self.n_reply * (prices.reply or 0.0)) / _MILLION


class UsageLedger:
    """Keeps tallies by ability and writes one line a batch.

    Args:
        model: which model.
        prices: per million tokens.
        path: a JSONL file that grows, shared by all processes; None keeps the tallies only.
    """

    def __init__(self, model: str, prices: Prices, path: Path | None) -> None:
        self.model, self.prices, self.path = model, prices, path
        self.by_ability: dict[str, Tally] = {}
        self._unwritten: dict[str, Tally] = {}

    @property
    def total(self) -> Tally:
        """Over all abilities."""
        sums = [tally.model_dump() for tally in self.by_ability.values()]
        return Tally(**{name: sum(one[name] for one in sums) for name in Tally.model_fields})

    def add(self, ability: str, tokens: Tokens | None, n_retries: int) -> None:
        """One answered call."""
        for tallies in (self.by_ability, self._unwritten):
            tallies[ability] = tallies.get(ability, Tally()).plus(tokens, n_retries)

    def write(self, seconds: float) -> None:
        """Append what has come since the last line, if anything.

        Args:
            seconds: wall time it took.

        Raises:
            SetupError: full disk or no permission.
        """
        waiting, self._unwritten = self._unwritten, {}
        if not waiting or self.path is None:
            return
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": self.model,
            "seconds": round(seconds, 3),
            "by_ability": {
                name: {**tally.model_dump(), "cost": tally.cost(self.prices)} for name, tally in sorted(waiting.items())
            },
        }
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # One write: lines of several processes do not mix.
                os.write(handle, (json.dumps(line, ensure_ascii=False) + "\n").encode())
            finally:
                os.close(handle)
