"""The generations of one rollout: asked with counter-based seeds, logged as they were served."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.records import Ability, CallRecord, GenerationRequest, Prompt, Reply, Sampling
from opd_evolver.rollout.seeds import call_seed

Call = Generator[GenerationRequest, Reply, Reply]


class StayedDown(OutageError):
    """An outage of what has waited by itself: an episode that began anew would wait as long once more."""


@contextmanager
def waiting_by_itself() -> Iterator[None]:
    """For calls into a memory, whose server or embedder waits as long as the site's patience says.

    Raises:
        StayedDown: in place of its outage.
    """
    try:
        yield
    except OutageError as outage:
        raise StayedDown(outage.seen, outage.expected, outage.mend) from outage


@dataclass
class Calls:
    """The generations of one rollout, in the order in which they were served."""

    rollout_id: str
    round: int
    seed: int
    records: list[CallRecord] = field(default_factory=list)
    policy_version: str | None = None
    n_prompt_tokens: int = 0
    n_reply_tokens: int = 0

    def ask(self, ability: Ability, turn: int, prompt: Prompt, sampling: Sampling) -> Call:
        """Yield one request, log what was served and return the reply."""
        seed = call_seed(self.seed, self.round, self.rollout_id, ability, turn)
        reply = yield GenerationRequest(prompt=prompt, sampling=sampling, seed=seed)
        if self.policy_version is None:
            self.policy_version = reply.policy_version
        elif self.policy_version != reply.policy_version:
            raise SetupError(
                f"rollout {self.rollout_id} was served by policies {self.policy_version} and {reply.policy_version}",
                "one policy version within an episode",
                "sync the policy between waves only, then `opd resume`",
            )
        # A text-only policy's tokens are unknown; its server has counted them.
        self.n_prompt_tokens += len(reply.prompt_token_ids) or reply.n_prompt_tokens
        self.n_reply_tokens += len(reply.token_ids) or reply.n_reply_tokens
        self.records.append(
            CallRecord(
                ability=ability,
                turn=turn,
                prompt_token_ids=reply.prompt_token_ids,
                reply_token_ids=reply.token_ids,
                logprobs=reply.logprobs,
                reply_text=reply.text,
                finish=reply.finish,
            )
        )
        return reply
