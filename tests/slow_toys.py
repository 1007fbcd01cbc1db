"""Toy worlds of distillation: tiny stock models, and one that has learnt to repeat what a hint tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import MAKERS

from opd_evolver.params import Params, merge
from opd_evolver.policy.local import LocalPolicy, save
from opd_evolver.records import Example
from opd_evolver.slow import anchor
from opd_evolver.slow.examples import write_lines, write_set
from opd_evolver.slow.forward import ReplyLogits, lay_out, token_logprobs
from opd_evolver.slow.launch import distil
from opd_evolver.slow.train import Distillation, DistilReport, OnProgress
from opd_evolver.slow.views import Outcome

N = {"act": 8, "select": 4, "write": 4}


def slow(**changes: Any) -> Params:
    """A quick training."""
    base: dict[str, Any] = {
        "slow.steps": 6,
        "slow.learning_rate": 0.005,
        "slow.mixture": {"act": 8, "select": 2, "write": 2, "maintain": 0, "anchor": 4},
        "slow.microbatch": 8,
        "slow.threads": 1,
        "slow.checkpoint_every": 2,
        "policy.max_prompt_tokens": 256,
    }
    return merge(Params(), {**base, **{key.replace("__", "."): value for key, value in changes.items()}}, "test")


def weights(**changes: float) -> dict[str, float]:
    return {"act": 1.0, "select": 0.3, "write": 0.3, "maintain": 0.0, "anchor": 0.0, **changes}


QUESTIONS, ANSWERS = range(40, 56), range(100, 110)
HINT, ASK = 90, 91
KNOWN = {question: 100 + question % 7 for question in QUESTIONS[:8]}


def reader(folder: Path) -> Path:
    """A tiny policy that repeats the answer a hint tells, and guesses among ten without one."""
    local = LocalPolicy.load(MAKERS["lfm2"](folder))
    rng, end = np.random.default_rng(0), min(local.end_ids)
    optimiser = torch.optim.AdamW(local.model.parameters(), lr=0.01)
    for _ in range(120):
        questions, answers = rng.choice(QUESTIONS, 48), rng.choice(ANSWERS, 48)
        told = [
            (q, HINT, a, ASK) if n % 2 else (q, ASK) for n, (q, a) in enumerate(zip(questions, answers, strict=True))
        ]
        layout = lay_out(told, [(a, end) for a in answers], torch.device("cpu"))
        loss = -token_logprobs(ReplyLogits(local.model)(layout), layout.targets).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save(local.model, local.tokenizer, folder)
    return folder


def toy_set(folder: Path) -> Path:
    """Questions whose answers only the hindsight holds."""
    examples, outcomes = [], []
    for ability, n in N.items():
        for number, question in enumerate(list(KNOWN)[:n]):
            example = Example(
                example_id=f"r{number}/{ability}/0",
                ability=ability,  # type: ignore[arg-type]
                rollout_id=f"r{number}",
                group="g",
                student_ids=(question, ASK),
                teacher_ids=(question, HINT, KNOWN[question], ASK),
                hindsight_spans=((1, 3),),
                max_new_tokens=4,
            )
            examples.append(example)
            served = KNOWN[question] if number % 2 else 109
            outcomes.append(
                Outcome(example_id=example.example_id, reply_token_ids=(served,), episode_return=float(number % 2))
            )
    write_set(folder, examples, outcomes)
    return folder


def toy_anchors(folder: Path) -> Path:
    """Questions that are never trained, with the answer in the prompt: reading must not be lost."""
    path = folder / anchor.ANCHORS
    told = [(question, 100 + (question + k) % 10) for question in QUESTIONS[8:] for k in (1, 4)]
    write_lines(
        path,
        [
            anchor.Anchor(
                anchor_id=f"{question}-{answer}",
                kind="read",
                ability="act",
                prompt_ids=(question, HINT, answer, ASK),
                reply_ids=(answer,),
            )
            for question, answer in told
        ],
    )
    return path


class World:
    """A policy, its example set and its anchors, and a way to train them."""

    def __init__(self, folder: Path, kind: str) -> None:
        {**MAKERS, "reader": reader}[kind](folder / "policy")
        toy_set(folder / "examples")
        toy_anchors(folder)
        self._lies_in(folder)

    @classmethod
    def found(cls, folder: Path) -> World:
        """The world that another process made there."""
        world = cls.__new__(cls)
        world._lies_in(folder)
        return world

    def _lies_in(self, folder: Path) -> None:
        self.folder, self.policy, self.examples = folder, folder / "policy", folder / "examples"
        self.anchors = folder / anchor.ANCHORS

    def train(self, name: str, params: Params, on_progress: OnProgress | None = None, **changes: Any) -> DistilReport:
        what: dict[str, Any] = {
            "policy_path": self.policy,
            "base_path": self.policy,
            "examples_folder": self.examples,
            "target": self.folder / name / "policy",
            "work": self.folder / name / "work",
            "params": params,
            "round": 1,
            "anchor_file": self.anchors,
        }
        return distil(Distillation(**{**what, **changes}), on_progress)
