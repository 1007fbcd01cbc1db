"""Policies on disk: any Hugging Face causal LM in safetensors form, or a LoRA adapter over one.

Nothing is fetched, no code of the folder is run, and weights that are missing or cut short are errors,
never random numbers.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opd_evolver.durable import explained
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.policy.weights import (
    ADAPTER_CONFIG,
    adapter_base,
    adapter_scaling,
    is_adapter,
    read_json,
    replaced_name,
    resolve,
    tensors_of,
    weight_files,
    weights_digest,
)
from opd_evolver.records import digest_of

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class Checkpoint(NamedTuple):
    """A loaded policy. `version` is a short digest of its weights."""

    model: Any
    tokenizer: Any
    version: str


def load(path: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Checkpoint:
    """Model in eval mode, tokenizer and version; an adapter is merged into its base.

    Args:
        path: folder, or `seed`.
        device: torch device.
        dtype: float32 or bfloat16.

    Raises:
        SetupError: missing folder or files, pickled weights, unknown architecture, no such device.
        CorruptionError: truncated or incomplete weights.
    """
    folder = resolve(path)
    _quiet_transformers()
    if is_adapter(folder):
        return _load_adapter(folder, device, dtype)
    model = _load_model(folder, dtype)
    return Checkpoint(on_device(model, device), load_tokenizer(folder), weights_digest(folder)[:12])


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a policy's folder.

    Raises:
        SetupError: it has none, or one that needs code of its own.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise SetupError(f"no tokenizer in {folder}", "tokenizer.json", f"tokenizer.save_pretrained('{folder}')")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare exceptions
        raise SetupError(
            f"cannot load the tokenizer of {folder}: {_first_line(error)}", "a stock tokenizer", "save it again"
        ) from error


def _load_model(folder: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise SetupError(
            f"no config.json in {folder}", "a folder in Hugging Face form", f"model.save_pretrained('{folder}')"
        )
    for file in weight_files(folder):
        tensors_of(file)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
        kind = read_json(folder / "config.json").get("model_type")
        raise SetupError(
            f"cannot load {folder} (model_type {kind!r}): {_first_line(error)}",
            "a causal language model of the installed transformers, without code of its own",
            "upgrade transformers or choose another policy.path",
        ) from error
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(one) for one in info.get("mismatched_keys", ()))
    if lacking:
        raise CorruptionError(
            f"the weights in {folder} lack {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}",
            "every tensor of the architecture",
            "copy the folder again",
        )
    return model.eval()


def _load_adapter(folder: Path, device: str, dtype: str) -> Checkpoint:
    base = adapter_base(folder)
    for file in weight_files(folder):
        tensors_of(file)
    merged = _merged(_load_model(base, dtype), folder, base)
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    version = digest_of([weights_digest(base), weights_digest(folder), adapter_scaling(folder)])[:12]
    return Checkpoint(on_device(merged.eval(), device), load_tokenizer(folder if has_tokenizer else base), version)


def _merged(model: Any, folder: Path, base: Path) -> Any:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            tuned = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        if not hasattr(tuned, "merge_and_unload"):
            raise SetupError(
                f"the adapter {folder} is a {read_json(folder / ADAPTER_CONFIG).get('peft_type')}",
                "one that can be merged into its base, such as LORA",
                "choose another policy.path",
            )
        # Tensors that do not fit stay random, and peft warns at most; loading once more tells which they are.
        mapping = getattr(model, "_checkpoint_conversion_mapping", None)
        loaded = tuned.load_adapter(str(folder), "default", key_mapping=mapping)
        held = tuned.state_dict(keep_vars=True)
        filled = {id(held[name]) for name in held.keys() - set(loaded.missing_keys)}  # layers may share a tensor
        lacking = [name for name in loaded.missing_keys if id(held[name]) not in filled]
        if amiss := lacking or loaded.unexpected_keys:
            raise CorruptionError(
                f"the adapter {folder} {'lacks' if lacking else 'holds'} {', '.join(amiss[:3])}"
                f"{' …' if len(amiss) > 3 else ''}",
                f"the tensors of the adapter that {ADAPTER_CONFIG} describes over {base}, and no others",
                "copy the folder again, or write it again with peft's save_pretrained",
            )
        return tuned.merge_and_unload()
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise SetupError(
            f"cannot put the adapter {folder} on {base}: {_first_line(error)}",
            "an adapter of that base",
            "check base_model_name_or_path",
        ) from error


def _quiet_transformers() -> None:
    """Progress and advice of transformers would run through our own displays; its own variable brings them back."""
    from transformers.utils import logging as displays

    logging: Any = displays
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def on_device(model: Any, device: str, mend: str = "OPD_DEVICE=cpu") -> Any:
    """The model, moved.

    Args:
        model: any torch module.
        device: torch device.
        mend: what the error says to do.

    Raises:
        SetupError: no such device here.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise SetupError(
            f"cannot use device {device!r}: {_first_line(error)}", "cpu, or a device of this machine", mend
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a policy in Hugging Face form, safetensors; after a kill either the old or the new folder is there.

    Args:
        model: a causal LM, or a peft model (then the adapter alone is written).
        tokenizer: its tokenizer, chat template included.
        folder: replaced as a whole when it exists.

    Raises:
        SetupError: full disk or no permission.
    """
    with explained(folder):
        fresh = _written(model, tokenizer, folder.parent / f".{folder.name}.new")
        if folder.exists():
            replaced = replaced_name(folder)
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(folder, replaced)
            os.replace(fresh, folder)
            _sync_to_disk(folder.parent)
            shutil.rmtree(replaced)
        else:
            os.replace(fresh, folder)
        _sync_to_disk(folder.parent)


def _written(model: Any, tokenizer: Any, fresh: Path) -> Path:
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _quiet_transformers()
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    for file in sorted(fresh.rglob("*")):
        _sync_to_disk(file)
    _sync_to_disk(fresh)
    return fresh


def _sync_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
