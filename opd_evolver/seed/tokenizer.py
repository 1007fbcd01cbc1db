"""The seed policy's tokenizer: one piece per word of the dialect, two per name, bytes for everything else.

Text is cut before each space; the marked word is looked up whole, else put together from the fewest
known pieces, down to single bytes. Hence any text is encoded without loss and no unknown token exists; where it
spells a special token, content comes back with a space in it (`policy/chat.py` breaks it).
A segment always begins with the word mark, so that words look the same wherever a segment starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opd_evolver.abilities.dialect import WORDS
from opd_evolver.environments.conventions import CONTEXTS, FIRST, SECOND, Procedural

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, END, SYSTEM, USER, ASSISTANT)
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROUNDS = tuple(f"r{n}" for n in range(16))
HANDLES = tuple(f"h{n}" for n in range(1, 51))
# Rows of the embedding that later domains may give words to without moving any other row.
N_SPARE = 64
WORD_SCORE, SYLLABLE_SCORE, BYTE_SCORE = -1.0, -2.0, -20.0
_MARK = " "


def words(domains: Iterable[Procedural]) -> tuple[str, ...]:
    """Every word that is one piece, in a fixed order; syllables of names are none of them."""
    syllables = {*FIRST, *SECOND}
    found = [*WORDS, *ROUNDS, *HANDLES, *CONTEXTS]
    for domain in domains:
        found += domain.words()
    return tuple(dict.fromkeys(word for word in found if word not in syllables))


def build(domains: Sequence[Procedural]) -> Any:
    """A fast tokenizer with the chat template, ready to be saved in Hugging Face form.

    Args:
        domains: whose words become pieces.

    Paper: none; the recipe of docs/seed_policy.md.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = _byte_letters()
    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [(_spelt(_MARK + word, letters), WORD_SCORE) for word in words(domains)]
    pieces += [(_spelt(_MARK + syllable, letters), SYLLABLE_SCORE) for syllable in FIRST]
    pieces += [(_spelt(syllable, letters), SYLLABLE_SCORE) for syllable in SECOND]
    pieces += [(letters[byte], BYTE_SCORE) for byte in range(256)]
    # No text can hold these: the brackets are no letter of the byte alphabet.
    pieces += [(f"⟨spare {n}⟩", BYTE_SCORE) for n in range(N_SPARE)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=None, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" "), behavior="merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(_MARK, 1, 0)])
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def by_word(tokenize: Callable[[str], tuple[int, ...]]) -> Callable[[str], tuple[int, ...]]:
    """The same tokenizer with a memory of words: text is cut at spaces anyway, so the ids are the same."""
    known: dict[str, tuple[int, ...]] = {}

    def fast(text: str) -> tuple[int, ...]:
        stripped = text[1:] if text[:1] == " " else text
        ids: list[int] = []
        for word in stripped.split(" "):
            if not word or not word.isprintable():
                return tokenize(text)
            found = known.get(word)
            if found is None:
                found = known[word] = tokenize(word)
            ids += found
        return tuple(ids)

    return fast


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte (GPT-2's table, as `ByteLevel` has it)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    extra = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(extra)) for byte in range(256)]


def _spelt(text: str, letters: Sequence[str]) -> str:
    return "".join(letters[byte] for byte in text.encode())
