"""The seed data: deployed prompts token for token, seed names only, loss on the right words, targets by the rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from seed_world import DOMAINS, chat, tokenizer

from opd_evolver.abilities import select, write
from opd_evolver.environments import conventions as cv
from opd_evolver.memory.levels import render
from opd_evolver.params import Params
from opd_evolver.records import Entry, Prompt, Reply, Task, TipContent
from opd_evolver.rollout.episode import episode
from opd_evolver.rollout.settings import EpisodeSettings, Rollout
from opd_evolver.seed import act_data, drill, select_data, write_data
from opd_evolver.seed.data import Encoded, Encoder, batch
from opd_evolver.seed.facts import ENTRY_TOKEN_BUDGET, Conversation, Noted, tip
from opd_evolver.seed.facts import Reply as Said

MAKERS = {"act": act_data.sample, "select": select_data.sample, "write": write_data.sample, "drill": drill.sample}
OTHER_NAMES = {name for group in cv.GROUPS if group != "seed" for name in cv.names(group)}


def conversations(kind: str, n: int) -> Iterator[Conversation]:
    for number in range(n):
        yield MAKERS[kind](DOMAINS[number % 2], cv.generator("test", kind, number))


def texts(conversation: Conversation) -> list[str]:
    said = [reply.text for _, reply in conversation.turns]
    return [" ".join(part.text for part in message.segments) for message, _ in conversation.turns] + said


def scored_text(encoded: Encoded) -> str:
    ids = [one for one, scored in zip(encoded.token_ids, encoded.scored, strict=True) if scored]
    return str(tokenizer().decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("kind", MAKERS)
def test_only_seed_names_occur(kind: str) -> None:
    seen = {word for conversation in conversations(kind, 150) for text in texts(conversation) for word in text.split()}
    assert seen & set(cv.names("seed"))
    assert not seen & OTHER_NAMES


@pytest.mark.parametrize("kind", MAKERS)
def test_every_word_is_in_the_vocabulary(kind: str) -> None:
    """Bytes occur only in engines' error messages and in a trajectory's outcome."""
    seen = {word for one in conversations(kind, 150) for text in texts(one) for word in text.split()}
    spelt = {word for word in seen if len(chat().tokenize(word)) > 3}
    assert spelt <= {'"=":', "syntax", "near", "success"}


@pytest.mark.parametrize("kind", MAKERS)
def test_sequences_are_what_the_policy_serves(kind: str) -> None:
    """Each reply's prefix is the prompt as `ChatEncoder` renders it; what is scored are replies' ends."""
    encoder = Encoder(tokenizer())
    for conversation in conversations(kind, 40):
        encoded = encoder.encode(conversation)
        history = []
        for message, reply in conversation.turns:
            prompt = chat().encode(Prompt(ability="act", messages=(*history, message))).token_ids
            said = (*chat().tokenize(reply.text), tokenizer().eos_token_id)
            end = len(prompt) + len(said)
            assert tuple(encoded.token_ids[:end]) == (*prompt, *said)
            n_scored = sum(encoded.scored[len(prompt) : end])
            assert encoded.scored[len(prompt) : end] == [False] * (len(said) - n_scored) + [True] * n_scored
            assert n_scored == len(said) if reply.scored and not reply.n_masked_words else n_scored < len(said)
            history += [message, act_data.act.reply_message(said, reply.text)]
        assert len(encoded.token_ids) == len(encoded.scored)


def test_an_episode_asks_in_the_seed_datas_form() -> None:
    """The act, select and write prompts of a real episode equal those built by the seed data's own calls."""
    domain, settings = DOMAINS[0], EpisodeSettings.of(Params(), greedy=True)
    assert settings.entry_token_budget == ENTRY_TOKEN_BUDGET
    task = domain.tasks("seed", 1)[0]
    facts = [Noted(fact.scope, fact.key, 3, fact.value) for fact in domain.needed(task)]
    held = [tip(domain, fact).model_copy(update={"entry_id": fact.key}) for fact in facts]
    asked: list[Prompt] = []
    run = episode(Rollout(rollout_id="r", round=0, wave=0, task=task), domain, _Held(held), settings)
    request = next(run)
    try:
        while True:
            asked.append(request.prompt)
            text = _answer(request.prompt, domain, task, facts)
            request = run.send(Reply(text=text, token_ids=(*chat().tokenize(text), tokenizer().eos_token_id)))
    except StopIteration as stop:
        assert stop.value.row.success
    kinds = [prompt.ability for prompt in asked]
    assert kinds == ["select", *["act"] * len(facts), "write"]
    assert asked[0] == select.prompt(task.text, held, token_budget=ENTRY_TOKEN_BUDGET)
    first = act_data.act.first_message(task.text, "", held, token_budget=ENTRY_TOKEN_BUDGET)
    assert asked[1].messages[0] == first
    conversation = Conversation(
        "act", tuple((one.messages[-1], Said(_answer(one, domain, task, facts))) for one in asked[1:-1])
    )
    encoded = Encoder(tokenizer()).encode(conversation)
    last = chat().encode(asked[-2]).token_ids
    assert tuple(encoded.token_ids[: len(last)]) == last


class _Held:
    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def retrieve(self, query: str, **_: object) -> list[tuple[Entry, float]]:
        return [(entry, 1.0) for entry in self.entries]


def _answer(prompt: Prompt, domain: object, task: Task, facts: list[Noted]) -> str:
    if prompt.ability == "select":
        return " ".join(f"{fact.scope} {fact.key} h{place}" for place, fact in enumerate(facts, start=1))
    if prompt.ability == "write":
        return "none"
    fact = facts[sum(message.role == "assistant" for message in prompt.messages)]
    entry = render(tip(DOMAINS[0], fact), token_budget=ENTRY_TOKEN_BUDGET)
    subs = task.gold["subs"]
    sub = cv.Sub(*next(sub for sub in subs if sub[0] == fact.key))
    return f"{entry} do {DOMAINS[0].action(sub, fact.value)}"


def test_batches_come_from_a_counter() -> None:
    encoder = Encoder(tokenizer())
    one = batch(encoder, DOMAINS, 6, drill_share=0.2, key=(0, 1, 0))
    assert batch(encoder, DOMAINS, 6, drill_share=0.2, key=(0, 1, 0)) == one
    assert batch(encoder, DOMAINS, 6, drill_share=0.2, key=(0, 1, 1)) != one
    assert {made.ability for made in batch(encoder, DOMAINS, 20, drill_share=1.0, key=(0,))} == {"drill"}


def entry(scope: str, key: str, created_round: int) -> Entry:
    return tip(DOMAINS[0], Noted(scope, key, created_round, "4"))


def test_selection_takes_the_newest_and_obeys_verdicts() -> None:
    shown = [entry("zora", "late", 3), entry("zora", "held", 9), entry("zora", "late", 5), entry("zuna", "late", 9)]
    assert select_data.best(shown, "zora", "late", {}) == 2
    assert select_data.best(shown, "zora", "late", {0: "up"}) == 0
    assert select_data.best(shown, "zora", "late", {2: "down"}) == 0
    assert select_data.best(shown, "zora", "late", {0: "down", 2: "down", 1: "up"}) is None
    assert select_data.best([*shown, entry("zora", "late", 5)], "zora", "late", {}) == 2
    assert select_data.best(shown, "zora", "paid", {}) is None


def test_selections_parse_and_point_at_the_needed_facts() -> None:
    for conversation in conversations("select", 100):
        message, reply = conversation.turns[0]
        shown = message.segments[2].text.split(" | ")
        places = select.parse(reply.text, len(shown), 4)
        assert places is not None
        if reply.n_masked_words:
            continue
        for scope, key, handle in re.findall(r"(\S+) (\S+) (h\d+)", reply.text):
            assert shown[int(handle[1:]) - 1].startswith(f"{scope} {key} {handle} ")


def test_writing_follows_the_transcript_and_the_verdicts() -> None:
    n_none = n_hinted = 0
    for conversation in conversations("write", 300):
        message, reply = conversation.turns[0]
        text = " ".join(part.text for part in message.segments)
        body, _, hint = text.partition(" hint ")
        guessed = re.findall(r"\| \S+ (\S+) guess (\S+) do [^|]* got ok", body)
        downs = set(re.findall(r"tip (\S+) (\S+) down", hint))
        ups = [fact for fact in re.findall(r"tip (\S+) (\S+) up", hint) if fact not in guessed]
        expected = [fact for fact in guessed if fact not in downs] + ups
        words = reply.text.split()[reply.n_masked_words :]
        written = write.parse(" ".join(words).removeprefix("| "), limit=8)
        assert not written.rejected
        found = [(c.trigger, c.text) for c in written.contents if isinstance(c, TipContent)]
        assert found == expected
        n_none += reply.text == "none"
        n_hinted += bool(hint)
    assert 0.3 < n_none / 300 < 0.6
    assert 0.08 < n_hinted / 300 < 0.35


def test_act_replies_follow_knowledge_and_never_repeat_a_refused_value() -> None:
    n_hinted = n_guessed = 0
    for conversation in conversations("act", 300):
        first = " ".join(part.text for part in conversation.turns[0][0].segments)
        n_hinted += " hint " in first
        refused: set[tuple[str, str]] = set()
        for number, (_, reply) in enumerate(conversation.turns):
            if not reply.scored or reply.n_masked_words:
                continue
            scope, key, marker, value, do = reply.text.split()[:5]
            assert do == "do"
            assert (key, value) not in refused
            if marker == "guess":
                n_guessed += 1
            else:
                assert f"{scope} {key} {marker} {value}" in first
            if number + 1 < len(conversation.turns):
                answer = conversation.turns[number + 1][0].segments[0].text
                if answer.startswith("no"):
                    refused.add((key, value))
    assert 0.1 < n_hinted / 300 < 0.3
    assert n_guessed > 40


def test_students_own_replies_and_corrupted_beginnings_carry_no_loss() -> None:
    encoder = Encoder(tokenizer())
    own = corrupted = 0
    for conversation in conversations("act", 400):
        encoded = encoder.encode(conversation)
        whole = [reply.text for _, reply in conversation.turns if reply.scored and not reply.n_masked_words]
        for _, reply in conversation.turns:
            if not reply.scored:
                own += 1
                assert reply.text not in scored_text(encoded) or reply.text in " ".join(whole)
            elif reply.n_masked_words:
                corrupted += 1
                rest = " ".join(reply.text.split()[reply.n_masked_words :])
                assert rest in scored_text(encoded)
    assert own > 10 and corrupted > 10
