"""Seed data of maintenance: its commands are carried out by the real episode, and follow notes and verdicts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from rollout_world import Shelf, small

from opd_evolver.abilities import maintain
from opd_evolver.environments import conventions as cv
from opd_evolver.environments.apps import Apps
from opd_evolver.environments.sql import Sql
from opd_evolver.fast.maintenance import MaintenanceSettings, maintenance
from opd_evolver.fast.wave import Wave
from opd_evolver.memory import rivals
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import LEVELS
from opd_evolver.rollout.driver import drive
from opd_evolver.seed import maintain_data
from opd_evolver.seed.facts import Conversation

DOMAINS: tuple[cv.Procedural, ...] = (Sql(levels=LEVELS), Apps(levels=LEVELS))
HANDLED = re.compile(r"\bh(\d+)\b")


def conversations(n: int) -> Iterator[Conversation]:
    for number in range(n):
        yield maintain_data.sample(DOMAINS, cv.generator("maintain", number))


def listed(conversation: Conversation) -> tuple[list[str], str]:
    """The entries' texts by handle, and the hint."""
    segments = conversation.turns[0][0].segments
    hints = [segment.text for segment in segments if segment.kind == "hindsight"]
    return segments[1].text.split(" | "), hints[0] if hints else ""


def test_notes_and_verdicts_decide() -> None:
    seen: Counter[str] = Counter()
    for conversation in conversations(600):
        entries, hint = listed(conversation)
        marks = dict(re.findall(r"h(\d+) (up|down|dup)", hint.partition(" | ")[0]))
        commands = [maintain.parse(reply.text, len(entries)) for _, reply in conversation.turns]
        assert [command.kind for command in commands][-1] == "finish"
        deleted = {place + 1 for command in commands if command.kind == "delete" for place in command.places}
        merged = {place + 1 for command in commands if command.kind == "merge" for place in command.places}
        assert not deleted & merged and "unreadable" not in {command.kind for command in commands}
        for handle, text in enumerate(entries, start=1):
            mark, noted = marks.get(str(handle), ""), set(text.split()) & set(rivals.NOTES)
            if mark in ("down", "dup"):
                assert handle in deleted, (text, mark)
            elif mark == "up":
                assert handle not in deleted, text
            elif noted & {"poor", "dup"}:
                assert handle in deleted, text
            elif not noted & {"stale"} and not mark:
                assert handle not in deleted, text
            seen.update([mark or "unmarked", *noted])
        seen.update(command.kind for command in commands)
    assert min(seen[word] for word in ("up", "down", "dup", "clash", "stale", "poor", "delete", "merge")) > 20, seen


def test_the_real_episode_carries_every_command_out() -> None:
    settings = MaintenanceSettings.of(small(fast__maintain_max_steps=8))
    wave = Wave(round=16, index=1, n_tasks=40, microbatches=(), maintain_after=True)
    n_operations = 0
    for number in range(150):
        rng = cv.generator("episode", number)
        shown = maintain_data.listing_of(DOMAINS, rng)
        commands = iter([*maintain_data.commands_of(shown, rivals.notes(shown), {}), "finish"])
        policy = ScriptedPolicy(lambda prompt, request, commands=commands: next(commands))
        shelf = Shelf(shown)
        [done] = drive(policy, [lambda shelf=shelf: maintenance(wave, shelf, settings)], 1)
        assert done.row is not None
        assert all(turn.result != maintain.ERROR for turn in done.row.turns), done.row.turns
        n_operations += len(done.operations)
    assert n_operations > 50
