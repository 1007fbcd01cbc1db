"""Trains the seed policy from scratch: on the CPU the same settings give the same bytes.

A batch is cut into shards; each worker process (one thread each) takes its shards' gradients, all of them
add up the shards in the same order and take the same step. With an accelerator one process takes every gradient and
the workers make the data. Data come from a counter, hence nothing but the state file is needed to go on after a kill.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional as F

from opd_evolver.errors import SetupError
from opd_evolver.policy.checkpoint import on_device
from opd_evolver.processes import die_with_parent
from opd_evolver.seed import model as network
from opd_evolver.seed import state
from opd_evolver.seed import tokenizer as vocabulary
from opd_evolver.seed.ahead import made_ahead, shard_of
from opd_evolver.seed.curve import ABILITIES, Curve
from opd_evolver.seed.data import Encoded, Encoder, domains_of
from opd_evolver.seed.muon import Optimisers
from opd_evolver.seed.settings import SeedSettings

BARRIER_SECONDS = 600.0
FAREWELL_SECONDS = 10.0


@dataclass
class Shared:
    """Memory that the workers share: gradients [shard, parameter] and counts [shard, ability, 4].

    The four counts are: loss summed over scored tokens (nats), scored tokens, conversations, and those
    whose every scored token was the most likely one.
    """

    gradients: torch.Tensor
    counts: torch.Tensor
    barrier: Any


class Trainer:
    """One worker's copy of the model, its optimisers and its share of the data.

    Args:
        settings: decides the weights.
        rank: which worker this is.
        n_workers: how many share the shards.
        shared: their common memory; made here when None.
        device: of model and gradients; with another one than the CPU there is one worker.
    """

    def __init__(
        self,
        settings: SeedSettings,
        rank: int = 0,
        n_workers: int = 1,
        shared: Shared | None = None,
        device: str = "cpu",
    ) -> None:
        self.settings = settings
        self.domains = domains_of(settings)
        self.tokenizer = vocabulary.build(self.domains)
        self.encoder = Encoder(self.tokenizer)
        self.model = on_device(network.build(self.tokenizer, settings.seed, settings.kernel), device, "--device cpu")
        self.model.train()
        self.parameters = list(self.model.parameters())
        self.device = self.parameters[0].device
        self.optimisers = self._fresh()
        self.shards = range(rank, settings.shards, n_workers)
        # Padding costs an accelerator less than a pass more.
        self.n_groups = settings.microbatches if self.device.type == "cpu" else 1
        self.shared = shared or share(settings, sum(p.numel() for p in self.parameters), n_workers, device)

    def _fresh(self) -> Optimisers:
        settings = self.settings
        return Optimisers(
            self.model,
            muon_rate=settings.muon_rate,
            adam_rate=settings.adam_rate,
            weight_decay=settings.weight_decay,
        )

    def step(self, number: int, made: Sequence[Sequence[Encoded]] | None = None) -> torch.Tensor:
        """One optimiser step, on the data of all shards where another process made them; counts [ability, 4]."""
        settings, shared = self.settings, self.shared
        if settings.begins_polish(number):
            self.optimisers = self._fresh()
        for shard in self.shards:
            drawn = made[shard] if made else shard_of(settings, self.encoder, self.domains, number, shard)
            shared.counts[shard] = self._backward(drawn)
            torch.cat([_gradient(p).flatten() for p in self.parameters], out=shared.gradients[shard])
        shared.barrier.wait(BARRIER_SECONDS)
        total = shared.gradients[0].clone()
        for shard in range(1, settings.shards):
            total += shared.gradients[shard]
        total /= float(shared.counts[:, :, 1].sum())
        total *= min(1.0, settings.clip_norm / (float(total.norm()) + 1e-6))
        sizes = [p.numel() for p in self.parameters]
        for parameter, gradient in zip(self.parameters, torch.split(total, sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        self.optimisers.step(settings.rate(number))
        counts = shared.counts.sum(0)
        # Only now may the others overwrite what was read here.
        shared.barrier.wait(BARRIER_SECONDS)
        return counts

    def _backward(self, drawn: Sequence[Encoded]) -> torch.Tensor:
        """Gradients of the loss summed over the scored tokens of one shard; its counts."""
        for parameter in self.parameters:
            parameter.grad = None
        counts = torch.zeros(len(ABILITIES), 4, dtype=torch.float64)
        ordered = sorted(drawn, key=lambda one: len(one.token_ids))
        size = -(-len(ordered) // self.n_groups)
        for start in range(0, len(ordered), size):
            counts += self._microbatch(ordered[start : start + size])
        return counts

    def _microbatch(self, drawn: Sequence[Encoded]) -> torch.Tensor:
        longest = max(len(one.token_ids) for one in drawn)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([one.token_ids + [pad] * (longest - len(one.token_ids)) for one in drawn])
        scored = torch.tensor([one.scored + [False] * (longest - len(one.scored)) for one in drawn])
        ids, scored = ids.to(self.device), scored.to(self.device)
        # Padding stands at the end and everything looks back only, so no mask is needed.
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        wanted = scored[:, 1:]
        logits = self.model.lm_head(hidden[:, :-1][wanted])
        targets = ids[:, 1:][wanted]
        losses = F.cross_entropy(logits, targets, reduction="none")
        torch.autograd.backward(losses.sum())
        rows = torch.arange(len(drawn), device=self.device)[:, None].expand_as(wanted)[wanted]
        nothing = torch.zeros(len(drawn), device=self.device)
        missed = nothing.index_add(0, rows, (logits.argmax(-1) != targets).float())
        sums = nothing.index_add(0, rows, losses.detach())
        counts = torch.zeros(len(ABILITIES), 4, dtype=torch.float64)
        for one, loss, n_missed, n_scored in zip(
            drawn, sums.tolist(), missed.tolist(), wanted.sum(1).tolist(), strict=True
        ):
            counts[ABILITIES.index(one.ability)] += torch.tensor(
                [loss, n_scored, 1.0, float(n_missed == 0)], dtype=torch.float64
            )
        return counts


def share(settings: SeedSettings, n_parameters: int, n_workers: int, device: str = "cpu") -> Shared:
    """Memory for `n_workers` processes; the gradients on `device`."""
    gradients = torch.zeros(settings.shards, n_parameters, device=device)
    counts = torch.zeros(settings.shards, len(ABILITIES), 4, dtype=torch.float64)
    if n_workers == 1:
        return Shared(gradients, counts, threading.Barrier(1))
    context = multiprocessing.get_context("spawn")
    for tensor in (gradients, counts):
        cast(Any, tensor).share_memory_()
    return Shared(gradients, counts, context.Barrier(n_workers))


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _follow(settings: SeedSettings, rank: int, n_workers: int, shared: Shared, saved: str) -> None:
    """A worker beside the first: the same steps, nothing written."""
    die_with_parent()
    network.quiet()
    torch.set_num_threads(1)
    trainer = Trainer(settings, rank, n_workers, shared)
    done = state.load(Path(saved), trainer.model, trainer.optimisers)[0] if saved else 0
    for number in range(done, settings.all_steps):
        trainer.step(number)


def _watch(process: Any, barrier: Any) -> None:
    """Wake the waiting worker when another one ends before its time."""
    process.join()
    if process.exitcode:
        barrier.abort()


@dataclass(frozen=True)
class Trained:
    """What a training leaves. `state` may be deleted once the weights are saved; until then a kill costs little."""

    model: Any
    tokenizer: Any
    curve: list[dict[str, Any]]
    seconds: float
    state: Path


def train(
    settings: SeedSettings,
    work: Path,
    *,
    n_workers: int = 2,
    save_every: int = 250,
    report_every: int = 50,
    on_save: Callable[[Any, Any, int], None] | None = None,
    device: str = "cpu",
) -> Trained:
    """Train to the end, going on from the state in `work` where there is one.

    Args:
        settings: decide the weights on the CPU; nothing else here does.
        work: folder of the state file; one per settings, data and kind of device.
        n_workers: processes of one thread each, at most one per shard; with another device than the CPU they make data.
        save_every: steps between states.
        report_every: steps between lines on stderr.
        on_save: called with model, tokenizer and step whenever a state was written.
        device: of model and gradients; only the CPU gives the same bytes again.

    Raises:
        SetupError: no worker, more than shards, one was lost, or no such device.
        CorruptionError: the state cannot be read.
    """
    if n_workers < 1:
        raise SetupError(f"{n_workers} workers", "at least 1", "set --workers 1")
    if device == "cpu" and n_workers > settings.shards:
        raise SetupError(f"{n_workers} workers", f"1 to {settings.shards}, one per shard", "set --workers 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _lead(settings, work, n_workers, save_every, report_every, on_save, device)
    finally:
        torch.set_num_threads(threads)


def _lead(
    settings: SeedSettings,
    work: Path,
    n_workers: int,
    save_every: int,
    report_every: int,
    on_save: Callable[[Any, Any, int], None] | None,
    device: str,
) -> Trained:
    here = device == "cpu"
    trainer = Trainer(settings, 0, n_workers if here else 1, device=device)
    name = state.fingerprint(settings, trainer.encoder, trainer.domains)[:16]
    saved = work / (f"{name}.pt" if here else f"{name}-{trainer.device.type}.pt")
    done, told = state.load(saved, trainer.model, trainer.optimisers) if saved.exists() else (0, None)
    if done:
        print(f"going on from step {done} of {settings.all_steps}", file=sys.stderr, flush=True)
    others = _followers(settings, n_workers, trainer.shared, str(saved) if done else "") if here else []
    steps: Iterator[Any] = repeat(None) if here else made_ahead(settings, done, n_workers)
    curve = Curve(settings.all_steps, told, done)
    number = done
    try:
        for number in range(done, settings.all_steps):
            curve.add(trainer.step(number, next(steps)))
            last = number + 1 == settings.all_steps
            if (number + 1) % report_every == 0 or last:
                curve.tell(number + 1)
            if (number + 1) % save_every == 0 and not last:
                state.save(saved, number + 1, trainer.model, trainer.optimisers, curve.state_dict())
                if on_save is not None:
                    on_save(trainer.model, trainer.tokenizer, number + 1)
        for process in others:
            process.join(FAREWELL_SECONDS)
    except threading.BrokenBarrierError as error:
        raise SetupError(
            f"a worker was lost at step {number}", "all workers alive", "run the same command again: it goes on"
        ) from error
    finally:
        for process in others:
            process.kill()
    return Trained(trainer.model, trainer.tokenizer, curve.lines, curve.seconds, saved)


def _followers(settings: SeedSettings, n_workers: int, shared: Shared, saved: str) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_follow, args=(settings, rank, n_workers, shared, saved), daemon=True)
        for rank in range(1, n_workers)
    ]
    for process in others:
        process.start()
        threading.Thread(target=_watch, args=(process, shared.barrier), daemon=True).start()
    return list(others)
