"""A policy's folder and its safetensors files: which they are, that they are whole, their canonical digest.

Stdlib only: a digest check never waits for torch.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.records import canonical_json, digest_of

SEED = "seed"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
# What scales an adapter's update; the rest of its configuration concerns training.
_ADAPTER_SCALING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_HEADER_BYTES = 100_000_000


class Tensor(NamedTuple):
    """Where a tensor lies: [start, end) bytes of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def resolve(path: str | Path) -> Path:
    """The folder of `policy.path`; `seed` is the one in the package.

    Raises:
        SetupError: no such folder.
    """
    if str(path) == SEED:
        folder = Path(str(resources.files("opd_evolver") / "assets" / "seed-policy"))
        if not (folder / "config.json").is_file():
            raise SetupError(f"no seed policy in {folder}", "the packaged weights", "make seed-policy")
        return folder
    folder = Path(path)
    if not folder.exists() and (replaced := replaced_name(folder)).is_dir():
        os.replace(replaced, folder)  # killed between the two renames of `save`
    if not folder.is_dir():
        raise SetupError(
            f"no folder {folder}", "a folder in Hugging Face form", "set policy.path, or `policy.path=seed`"
        )
    return folder


def replaced_name(folder: Path) -> Path:
    """Where `save` keeps the old folder until the new one stands."""
    return folder.parent / f".{folder.name}.replaced"


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_base(folder: Path) -> Path:
    """The folder of the base under an adapter, as its configuration names it: from `folder` on, or by itself.

    Raises:
        SetupError: it names none, or one that is not on this machine.
        CorruptionError: the configuration cannot be read.
    """
    config = folder / ADAPTER_CONFIG
    name = read_json(config).get("base_model_name_or_path")
    if not name:
        raise SetupError(f"{config} names no base", "base_model_name_or_path", "add the base's path to it")
    beside = folder / str(name)
    try:
        return resolve(beside if beside.is_dir() else str(name))
    except SetupError:
        raise SetupError(
            f"{config} names the base {name}, which is not on this machine",
            "a folder in Hugging Face form",
            "set its base_model_name_or_path to where the base lies; or, of a run: opd export --form merged",
        ) from None


def adapter_scaling(folder: Path) -> str:
    """What of an adapter's configuration scales its update, as canonical JSON.

    Raises:
        CorruptionError: the configuration cannot be read.
    """
    recorded = read_json(folder / ADAPTER_CONFIG)
    return canonical_json({key: recorded.get(key) for key in _ADAPTER_SCALING})


def under_adapter(folder: Path) -> str | None:
    """Digest of what an adapter's own tensors do not say: the weights under it and its scaling; None of a whole model.

    Raises:
        SetupError, CorruptionError: as `adapter_base`, `adapter_scaling` and `weights_digest`.
    """
    return digest_of([weights_digest(adapter_base(folder)), adapter_scaling(folder)]) if is_adapter(folder) else None


def check_positions(path: str | Path, *, prompt: int, reply: int) -> None:
    """Whether the longest prompt and reply have positions in the model of `policy.path`, before a run is begun.

    Args:
        path: folder, or `seed`; of an adapter its base is asked.
        prompt: `policy.max_prompt_tokens`.
        reply: the longest of `fast.*_max_new_tokens`.

    Raises:
        SetupError: they do not, which would end the run in mid-round.
        CorruptionError: the configuration cannot be read.
    """
    folder = resolve(path)
    config = read_json((adapter_base(folder) if is_adapter(folder) else folder) / "config.json")
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(positions, int) or prompt + reply <= positions:
        return
    fitting = positions - reply
    raise SetupError(
        f"policy.max_prompt_tokens = {prompt}: with a reply of {reply} up to {prompt + reply} tokens",
        f"at most {positions}, the model's positions",
        f"set policy.max_prompt_tokens={fitting}" if fitting > 0 else "lower fast.*_max_new_tokens",
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model or adapter in `folder`.

    Raises:
        SetupError: no weights, or only pickled ones, which can run code when loaded.
        CorruptionError: a shard named by the index is missing.
    """
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise CorruptionError(
                f"{folder} lacks {', '.join(missing) or 'all shards'}",
                f"the files named in {INDEX}",
                "copy the folder again",
            )
        return [folder / name for name in names]
    for name in (SINGLE, ADAPTER):
        if (folder / name).is_file():
            return [folder / name]
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise SetupError(
            f"{folder} holds pickled weights only ({', '.join(pickled[:3])}), which can run code when loaded",
            SINGLE,
            "convert them once where you trust them: model.save_pretrained(folder) writes safetensors",
        )
    raise SetupError(f"no weights in {folder}", SINGLE, "set policy.path to a folder written by save_pretrained")


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        CorruptionError: not readable as one.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptionError(f"cannot read {path}: {error}", "a JSON object", "copy the folder again") from None
    if not isinstance(tree, dict):
        raise CorruptionError(f"{path} holds {type(tree).__name__}", "a JSON object", "copy the folder again")
    return tree


def tensors_of(file: Path) -> dict[str, Tensor]:
    """Header of one safetensors file, checked against the file's length.

    Raises:
        CorruptionError: truncated, or not a safetensors file.
    """
    size = file.stat().st_size
    mend = "copy the file again, or take it back with `dvc checkout`"
    with file.open("rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        if size < 8 or n_header > min(size - 8, _MAX_HEADER_BYTES):
            raise CorruptionError(f"{file} has {size} bytes", "a whole safetensors file", mend)
        try:
            header = json.loads(stream.read(n_header))
            data = 8 + n_header
            found = {
                name: Tensor(file, one["dtype"], tuple(one["shape"]), *(data + at for at in one["data_offsets"]))
                for name, one in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CorruptionError(f"{file} has an unreadable header", "a safetensors file", mend) from None
    end = max((tensor.end for tensor in found.values()), default=8 + n_header)
    if end != size:
        raise CorruptionError(f"{file} has {size} bytes", f"{end} bytes, as its header says", mend)
    return found


def weights_digest(folder: Path) -> str:
    """sha256 over names, dtypes, shapes and bytes of all tensors; file metadata and sharding do not enter.

    For an adapter: of its own tensors alone; what `adapter_base` and `adapter_scaling` say is digested apart.

    Raises:
        SetupError, CorruptionError: as `weight_files` and `tensors_of`.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        for name, tensor in tensors_of(file).items():
            if name in found:
                raise CorruptionError(
                    f"{folder} holds tensor {name} twice", "each tensor once", "remove the stale file"
                )
            found[name] = tensor
    lines: list[str | bytes] = []
    for name in sorted(found):
        tensor = found[name]
        lines += [name, tensor.dtype, json.dumps(list(tensor.shape)), _bytes_digest(tensor)]
    return digest_of(lines)


def _bytes_digest(tensor: Tensor) -> bytes:
    if tensor.start == tensor.end:
        return hashlib.sha256().digest()
    with (
        tensor.file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
        view[tensor.start : tensor.end] as part,
    ):
        return hashlib.sha256(part).digest()
