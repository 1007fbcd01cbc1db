"""What the tests of the seed policy share: the two domains, the tokenizer, a tiny training."""

from __future__ import annotations

import functools
from typing import Any

from opd_evolver.environments.apps import Apps
from opd_evolver.environments.sql import Sql
from opd_evolver.policy.chat import ChatEncoder
from opd_evolver.seed import tokenizer as vocabulary
from opd_evolver.seed.settings import SeedSettings

DOMAINS = (Sql(), Apps())
TINY = SeedSettings(steps=16, polish_steps=2, wording_steps=2, drill_steps=5, shard_sequences=3, warmup_steps=5)


@functools.cache
def tokenizer() -> Any:
    return vocabulary.build(DOMAINS)


@functools.cache
def chat() -> ChatEncoder:
    return ChatEncoder(tokenizer(), 768)
