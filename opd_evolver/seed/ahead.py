"""Shards of the seed data, and processes that make them ahead of an accelerator, which would wait for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from opd_evolver.environments import conventions as cv
from opd_evolver.processes import die_with_parent
from opd_evolver.seed import tokenizer as vocabulary
from opd_evolver.seed.data import Encoded, Encoder, batch, domains_of
from opd_evolver.seed.settings import SeedSettings

# Steps that each process may be ahead.
N_AHEAD = 8


def shard_of(
    settings: SeedSettings, encoder: Encoder, domains: Sequence[cv.Procedural], number: int, shard: int
) -> list[Encoded]:
    """The conversations of one shard of step `number`: the same ones wherever they are made."""
    return batch(
        encoder,
        domains,
        settings.shard_sequences,
        drill_share=1.0 if number < settings.drill_steps else settings.drill_share,
        key=(settings.seed, number, shard),
        lowest_round=settings.lowest_round(number),
        worded=settings.worded(number),
    )


class Steps(Dataset[list[list[Encoded]]]):
    """All shards of a step by its number; domains and tokenizer are built in the process that first asks."""

    def __init__(self, settings: SeedSettings) -> None:
        self._settings = settings
        self._made: tuple[Encoder, tuple[cv.Procedural, ...]] | None = None

    def __len__(self) -> int:
        return self._settings.all_steps

    def __getitem__(self, number: int) -> list[list[Encoded]]:
        if self._made is None:
            domains = domains_of(self._settings)
            self._made = Encoder(vocabulary.build(domains)), domains
        return [shard_of(self._settings, *self._made, number, shard) for shard in range(self._settings.shards)]


def made_ahead(settings: SeedSettings, done: int, n_workers: int) -> Iterator[list[list[Encoded]]]:
    """The data of the steps from `done` on, in order, from `n_workers` processes that stay a few steps ahead."""
    loader: DataLoader[Any] = DataLoader(
        Steps(settings),
        batch_size=None,
        sampler=range(done, settings.all_steps),
        num_workers=n_workers,
        prefetch_factor=N_AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        multiprocessing_context="spawn",
    )
    return iter(loader)


def _as_it_is(drawn: list[list[Encoded]]) -> list[list[Encoded]]:
    return drawn


def _begin(worker: int) -> None:
    die_with_parent()
    torch.set_num_threads(1)
