"""The lock-step driver: feeds many episodes from one policy, and bridges outages of their environments.

A micro-batch's requests are collected in a fixed order and answered by one `generate`, so a
batch's make-up depends on the episodes alone. After an outage the episode starts anew and its
replies so far are replayed: the batch goes on as if nothing had happened, byte for byte.
Policy and memory wait by themselves, as long as the site's patience says; their outages end the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

from opd_evolver.errors import OutageError
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import GenerationRequest, Reply
from opd_evolver.rollout.calls import StayedDown

Result = TypeVar("Result")
Start = Callable[[], Generator[GenerationRequest, Reply, Result]]
Sleep = Callable[[float], None]
LONGEST_PAUSE_S = 30.0


def pause_s(attempt: int) -> float:
    """Back-off before retry `attempt` (1-based): 0.5, 1, 2, … at most 30 seconds."""
    return float(min(LONGEST_PAUSE_S, 0.5 * 2 ** (attempt - 1)))


class _Live(Generic[Result]):
    """One restartable episode: its generator, the request it waits on, and what it was answered so far."""

    def __init__(self, start: Start[Result], retries: int, sleep: Sleep) -> None:
        self._start, self._retries, self._sleep = start, retries, sleep
        self._attempt = 0
        self._run: Generator[GenerationRequest, Reply, Result] | None = None
        self._log: list[tuple[GenerationRequest, Reply]] = []
        self.request: GenerationRequest | None = None
        self.results: list[Result] = []

    def begin(self) -> None:
        """Run to the first request."""
        self._guarded(self._replay)

    def answer(self, reply: Reply) -> None:
        """Send the reply to the request it waits on and run to the next one, or to the end."""
        if self.request is not None:
            self._log.append((self.request, reply))
            self._guarded(lambda: self._send(reply))

    def close(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None

    def _guarded(self, advance: Callable[[], None]) -> None:
        while True:
            try:
                return advance()
            except StayedDown as outage:
                self.close()
                raise OutageError(outage.seen, outage.expected, outage.mend) from outage
            except OutageError as outage:
                self.close()
                self._attempt += 1
                if self._attempt > self._retries:
                    raise OutageError(
                        f"{outage.seen} (tried {self._attempt} times)",
                        outage.expected,
                        outage.mend or "bring it up again, then `opd resume`",
                    ) from outage
                self._sleep(pause_s(self._attempt))
                advance = self._replay

    def _replay(self) -> None:
        self.close()
        self._run = self._start()
        log, self._log = self._log, []
        try:
            self.request = next(self._run)
            for request, reply in log:
                # A world that answers otherwise after an outage goes on live from where it differs.
                if self.request != request:
                    return
                self._log.append((request, reply))
                self._send(reply)
        except StopIteration as stop:
            self._finish(stop.value)
        except OutageError:
            self._log = log
            raise

    def _send(self, reply: Reply) -> None:
        if self._run is None:
            return
        try:
            self.request = self._run.send(reply)
        except StopIteration as stop:
            self._finish(stop.value)

    def _finish(self, result: Result) -> None:
        self.results.append(result)
        self.request, self._run = None, None


def _lock_step(policy: Policy, starts: Sequence[Start[Result]], outage_retries: int, sleep: Sleep) -> list[Result]:
    lives = [_Live(start, outage_retries, sleep) for start in starts]
    try:
        for live in lives:
            live.begin()
        while waiting := [(live, live.request) for live in lives if live.request is not None]:
            # What a policy raises is final: an endpoint has waited as long as it may.
            replies = policy.generate([request for _, request in waiting])
            for (live, _), reply in zip(waiting, replies, strict=True):
                live.answer(reply)
        return [result for live in lives for result in live.results]
    finally:
        for live in lives:
            live.close()


def drive(
    policy: Policy,
    starts: Sequence[Start[Result]],
    batch: int,
    *,
    outage_retries: int = 0,
    sleep: Sleep = time.sleep,
) -> list[Result]:
    """Play episodes to their end, `batch` of them in lock-step at a time; results in the given order.

    Args:
        policy: answers requests.
        starts: each begins one episode; called again when an outage interrupts it.
        batch: episodes per micro-batch. Fixed by the parameters, never by the number of workers.
        outage_retries: restarts an episode may take before the step fails; none for policy and memory, which wait by
            themselves.
        sleep: waits the given seconds; injected by tests.

    Raises:
        OutageError: an engine stayed down. Every generator, hence every environment, is closed first.
    """
    results: list[Result] = []
    for at in range(0, len(starts), batch):
        results += _lock_step(policy, starts[at : at + batch], outage_retries, sleep)
    return results
