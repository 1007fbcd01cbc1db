"""Tiny random stock checkpoints, made on the spot: real architectures, real tokenizers, realistic templates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

CORPUS = (
    "select count ( * ) from jobs where state = 4 group by owner order by name limit 10",
    "zora late r3 4 | zora paid r1 7 | mivo held r2 9 task zora count late then sum held",
    "the quick brown fox jumps over the lazy dog and says hello to the user and the assistant",
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{ message.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_level_tokenizer(
    specials: tuple[str, ...],
    template: str | None,
    corpus: tuple[str, ...] = CORPUS * 4,
    vocabulary: int = 400,
    **named: str,
) -> Any:
    """A byte-level BPE, by default with a few merges; `named` are eos_token, pad_token, bos_token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    # `<think>` is an added token that is not special, as in Qwen3.
    backend.add_tokens(["<think>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=[one for one in specials if one not in named.values()],
        **named,
    )
    tokenizer.chat_template = template
    return tokenizer


def qwen3_tokenizer(**more: Any) -> Any:
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return byte_level_tokenizer(specials, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", **more)


def llama_tokenizer(**more: Any) -> Any:
    specials = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return byte_level_tokenizer(specials, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", **more)


def lfm2_tokenizer() -> Any:
    specials = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
    return byte_level_tokenizer(specials, NO_SYSTEM, eos_token="<|end|>", pad_token="<|pad|>")


def _saved(model_class: Any, config: Any, tokenizer: Any, folder: Path, seed: int) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        # Stock initialisation is nearly uniform; larger weights give tests distributions worth the name.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0.0, 0.15)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_qwen3(folder: Path, seed: int = 0) -> Path:
    """Qwen3, 2 layers, ChatML."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = qwen3_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _saved(Qwen3ForCausalLM, config, tokenizer, folder, seed)


def tiny_llama(folder: Path, seed: int = 0) -> Path:
    """Llama, 2 layers, Llama-3 headers; two end tokens, of which only one is the tokenizer's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")],
    )
    return _saved(LlamaForCausalLM, config, tokenizer, folder, seed)


def project_texts() -> tuple[str, ...]:
    """This project's own texts, to learn pieces from."""
    root = Path(__file__).resolve().parents[1]
    files = [*sorted(root.glob("docs/*.md")), *sorted(root.glob("opd_evolver/**/*.py"))]
    return tuple(file.read_text(encoding="utf-8") for file in files)


def sized(kind: str, folder: Path, millions: float, seed: int = 0) -> Path:
    """A `qwen3` or `llama` of about so many parameters: 8 layers, 8 192 pieces learnt from this project's own texts."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    makers: dict[str, Any] = {"qwen3": qwen3_tokenizer, "llama": llama_tokenizer}
    tokenizer = makers[kind](corpus=project_texts(), vocabulary=8192)
    # A layer has about 13.5 width² weights, the embedding one row a piece.
    width = 64 * max(1, round((millions * 1e6 / (8 * 13.5 + len(tokenizer) / 384)) ** 0.5 / 64))
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 8,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "qwen3":
        config: Any = Qwen3Config(head_dim=64, pad_token_id=tokenizer.pad_token_id, **shape)
        return _saved(Qwen3ForCausalLM, config, tokenizer, folder, seed)
    config = LlamaConfig(bos_token_id=tokenizer.bos_token_id, **shape)
    return _saved(LlamaForCausalLM, config, tokenizer, folder, seed)


# Shapes of the Qwen3 models of that name.
STOCK_QWEN3: dict[str, dict[str, int]] = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
QWEN3_VOCABULARY = 151_936


def stock_qwen3(size: str, folder: Path, device: str = "cpu", seed: int = 0) -> Path:
    """Random bfloat16 weights in the shape of Qwen3-0.6B or -4B; the vocabulary is filled up with words of no use."""
    import json

    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    known = qwen3_tokenizer(corpus=project_texts(), vocabulary=8192)
    tree = json.loads(known.backend_tokenizer.to_str())
    first = len(known)
    tree["model"]["vocab"] |= {f"filler{place}": place for place in range(first, QWEN3_VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)),
        additional_special_tokens=["<|im_start|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHATML
    config = Qwen3Config(
        vocab_size=QWEN3_VOCABULARY,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
        **STOCK_QWEN3[size],
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_lfm2(folder: Path, seed: int = 0, width: int = 32, positions: int = 2048) -> Path:
    """Lfm2, conv conv attn conv attn, as the seed policy; a template that refuses a system role."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    tokenizer = lfm2_tokenizer()
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        conv_L_cache=3,
        block_auto_adjust_ff_dim=False,
        layer_types=["conv", "conv", "full_attention", "conv", "full_attention"],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return _saved(Lfm2ForCausalLM, config, tokenizer, folder, seed)


MAKERS = {"qwen3": tiny_qwen3, "llama": tiny_llama, "lfm2": tiny_lfm2}


@cache
def cached(kind: str, root: Path) -> Path:
    """One checkpoint a kind and session."""
    return MAKERS[kind](root / kind)
