"""Seed data of all levels: its replies are those of a reader by plain rules, and its episodes the engines'."""

from __future__ import annotations

import re
from functools import partial

import pytest

from opd_evolver.abilities import act
from opd_evolver.environments import conventions as cv
from opd_evolver.environments.apps import Apps
from opd_evolver.environments.procedures import word_at
from opd_evolver.environments.sql import Sql
from opd_evolver.policy.chat import ChatEncoder
from opd_evolver.records import LEVELS, Ability, GenerationRequest, Message, Prompt, Sampling, Task
from opd_evolver.seed import act_data, drill, select_data, write_data
from opd_evolver.seed import tokenizer as vocabulary
from opd_evolver.seed.course import Course
from opd_evolver.seed.facts import Conversation
from tests.level_reader import reader

DOMAINS: tuple[cv.Procedural, ...] = (Sql(levels=LEVELS), Apps(levels=LEVELS))
MAKERS = {"act": act_data.sample, "select": select_data.sample, "write": write_data.sample, "drill": drill.sample}
N = 400


def conversations(kind: str, n: int = N) -> list[Conversation]:
    return [MAKERS[kind](DOMAINS[number % 2], cv.generator("levels", kind, number)) for number in range(n)]


def text_of(message: Message) -> str:
    return " ".join(part.text for part in message.segments)


def read(ability: Ability, messages: list[Message]) -> str:
    prompt = Prompt(ability=ability, messages=tuple(messages))
    return reader().generate([GenerationRequest(prompt=prompt, sampling=Sampling(), seed=0)])[0].text


@pytest.mark.parametrize("ability", ["select", "write"])
def test_what_is_selected_and_written_follows_the_rules(ability: Ability) -> None:
    n_checked = 0
    for conversation in conversations(ability):
        message, reply = conversation.turns[0]
        if " hint " in text_of(message) or reply.n_masked_words:
            continue
        expected = read(ability, [message])
        if ability == "select":
            assert re.findall(r"h\d+", reply.text) == re.findall(r"h\d+", expected), text_of(message)
        else:
            assert reply.text == expected, text_of(message)
        n_checked += 1
    assert n_checked > N / 2


def test_replies_act_as_the_entries_say_and_guess_only_where_they_say_nothing() -> None:
    n_followed = dict.fromkeys(("skill", "tool", "traj", "tip"), 0)
    for conversation in conversations("act"):
        first = text_of(conversation.turns[0][0])
        if " hint " in first or not first.startswith("act mem"):
            continue
        history: list[Message] = []
        refused = called = False
        for message, reply in conversation.turns:
            history.append(message)
            said = text_of(message)
            # A tool that ends within its order was wrong somewhere; from there on it is guessed.
            refused |= said.startswith(("no", "error")) or (called and bool(re.search(r" s\d$", said)))
            if not refused and reply.scored:
                expected = read("act", history)
                assert (" guess " in reply.text) == (" guess " in expected), first
                if " guess " not in expected:
                    assert reply.text.split(" do ")[1] == expected.split(" do ")[1], first
                    kind = "tool" if " run " in reply.text else "traj" if " ; call " in reply.text else "tip"
                    n_followed["skill" if re.search(r" : \w+ ; \w+ ; ", reply.text) else kind] += 1
            called = " run " in reply.text
            history.append(act.reply_message((), reply.text))
    assert min(n_followed.values()) > 5, n_followed


def test_scripted_episodes_are_the_engines_own() -> None:
    """What a seed episode shows after each action is what the engine shows, numbers of sql aside."""
    n_moves = 0
    for number in range(80):
        domain, rng = DOMAINS[number % 2], cv.generator("engine", number)
        world = cv.random_world(domain.spec, rng)
        demo = domain.demo(world, rng)
        task = Task(
            task_id="t",
            domain=domain.spec.name,
            scope=world.scope,
            family="",
            split="seed",
            text=demo.text,
            gold={"subs": [list(x) for x in dict.fromkeys((m.key, m.arg) for m in demo.subs)], "facts": world.facts,
                  "world_seed": 0, "home": world.home},
        )  # fmt: skip
        course = Course(domain, demo, partial(_answers, world.facts), rng)
        engine = (Sql, Apps)[number % 2](levels=LEVELS)
        engine.reset(task)
        while not course.over:
            move = course.move
            word = course.guess() if rng.random() < 0.5 else word_at(world.facts[move.key], move.stage)
            said = course.attempt(word)
            shown = engine.step(domain.action(move, word)).observation
            assert re.sub(r"^(ok|no) \d+", r"\1", said) == re.sub(r"^(ok|no) \d+", r"\1", shown)
            n_moves += 1
    assert n_moves > 150


def _answers(facts: dict[str, str], move: cv.DemoSub, word: str) -> bool:
    return word == word_at(facts[move.key], move.stage)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_word_is_in_the_vocabulary_and_no_deployed_name_occurs(kind: str) -> None:
    chat = ChatEncoder(vocabulary.build(DOMAINS), 768)
    others = {name for group in cv.GROUPS if group != "seed" for name in cv.names(group)}
    seen: set[str] = set()
    longest = 0
    for conversation in conversations(kind, 200):
        texts = [*(text_of(message) for message, _ in conversation.turns), *(r.text for _, r in conversation.turns)]
        seen |= {word for text in texts for word in text.split()}
        longest = max(longest, *(len(chat.tokenize(text)) for text in texts))
    assert {word for word in seen if len(chat.tokenize(word)) > 3} <= {'"=":', "syntax", "near"}
    assert not seen & others
    assert longest < 700
