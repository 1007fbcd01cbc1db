"""The seed policy's network: stock LFM2 with half a million parameters."""

from __future__ import annotations

from typing import Any

import torch

LAYERS = ("conv", "conv", "full_attention", "conv", "full_attention")


def quiet() -> None:
    """Keep transformers' bars and its note on a missing kernel off the progress lines."""
    from transformers.utils import logging as library_logging

    logging: Any = library_logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def build(tokenizer: Any, seed: int, kernel: int = 3) -> Any:
    """A freshly initialised `Lfm2ForCausalLM` in fp32; the same seed gives the same weights.

    Args:
        tokenizer: fixes the vocabulary and the ids of end and padding.
        seed: of the initial weights.
        kernel: words that a short convolution looks back on, its own included.
    """
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=len(LAYERS),
        layer_types=list(LAYERS),
        num_attention_heads=4,
        num_key_value_heads=4,
        conv_L_cache=kernel,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Lfm2ForCausalLM(config)
    return model
