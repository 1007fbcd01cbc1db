"""Sentence encoders in a folder, by sentence-transformers: `memory.embedder: st:FOLDER`.

Nothing is fetched and nothing in the folder can run: safetensors only, no module but the library's own, no remote
code. A text's vector must not depend on which others stand in its batch, because scores are logged and runs resumed:
texts are encoded one at a time, on the CPU, by one thread. `vectors` keeps what was made.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory.unit_vectors import embed_told, other_dimension, unit

INSTALL = "pip install 'opd-evolver[st]'"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What decides the vectors: weights, configuration, vocabulary. Read-me files and other formats do not enter.
READ = (".safetensors", ".json", ".txt", ".model")


def resolve(place: str) -> Path:
    """The folder that `st:` names: a path, or `PACKAGE/path` inside an installed Python package.

    Raises:
        SetupError: there is no such folder.
    """
    folder = Path(place).expanduser()
    if place and folder.is_dir():
        return folder
    package, _, inside = place.partition("/")
    # Looked up, never imported: a model's package may do anything when it is.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(location) / inside).is_dir():
            return Path(location) / inside
    raise SetupError(
        f"memory.embedder: st:{place} names no folder",
        "a sentence-transformers folder, or PACKAGE/FOLDER of an installed package",
        "download one where there is a network (model.save_pretrained), and name it",
    )


def check_folder(folder: Path) -> None:
    """Whether the folder holds a sentence encoder that can be loaded without running anything of it.

    Raises:
        SetupError: no modules.json, pickled weights, or modules that are not the library's own.
        CorruptionError: modules.json is not readable.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        raise SetupError(f"no modules.json in {folder}", "a folder that sentence-transformers saved", "name another")
    try:
        kinds = [str(one["type"]) for one in json.loads(modules.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"cannot read {modules}: {error}", "a list of modules", "copy the folder again") from None
    foreign = [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
    if foreign:
        raise SetupError(
            f"{folder} asks for code of its own ({foreign[0][:80]})", "modules of sentence-transformers", "name another"
        )
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    pickled = [path for path in files if path.suffix in PICKLED and path.parent not in safe]
    if pickled or not safe:
        seen = f"{pickled[0]} is pickled and can run code when loaded" if pickled else f"no weights in {folder}"
        raise SetupError(
            seen,
            "model.safetensors",
            "convert it once where you trust it: SentenceTransformer(FOLDER).save_pretrained(NEW) writes safetensors",
        )


def digest(folder: Path) -> str:
    """sha256 of names and bytes of every file that decides the vectors."""
    whole = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix in READ)
    for path in sorted(files, key=lambda one: one.relative_to(folder).as_posix()):
        with path.open("rb") as file:
            part = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()}\0{part}\n".encode())
    return whole.hexdigest()


class SentenceTransformerEmbedder:
    """A sentence encoder, loaded when the first text is embedded.

    Args:
        folder: as sentence-transformers saves it.

    Raises:
        SetupError, CorruptionError: as `check_folder`.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder)
        self.folder = folder
        self.identity = f"st:{digest(folder)[:16]}-v1"
        self._dimension: int | None = None
        self._model: Any = None

    @property
    def dimension(self) -> int:
        """Columns of the vectors; loads the weights when nothing has told them yet."""
        if self._dimension is None:
            self.expect(self._encoded(["dimension"]).shape[1])
        return self._dimension or 0

    def expect(self, dimension: int) -> None:
        """As `Embedder.expect`."""
        if self._dimension not in (None, dimension):
            raise other_dimension(self.identity, self._dimension or 0, dimension)
        self._dimension = dimension

    def ready(self) -> None:
        """Whether sentence-transformers is installed."""
        if importlib.util.find_spec("sentence_transformers") is None:
            raise SetupError("sentence-transformers is not installed", "the extra `st`", INSTALL)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[N, dimension] float32, rows of unit length, zero where a text is blank."""
        return embed_told(texts, lambda: self.dimension, self._encoded)

    def _encoded(self, texts: list[str]) -> npt.NDArray[np.float32]:
        model = self._loaded()
        with _one_thread():
            rows = [
                model.encode([text], batch_size=1, normalize_embeddings=True, show_progress_bar=False)[0]
                for text in texts
            ]
        try:
            found = unit(rows)
        except ValueError:
            raise CorruptionError(
                f"{self.folder} gives vectors that are not finite", "numbers", "copy the folder again"
            ) from None
        self.expect(found.shape[1])
        return found

    def _loaded(self) -> Any:
        if self._model is None:
            self.ready()
            from sentence_transformers import SentenceTransformer

            try:
                with _silent():
                    self._model = SentenceTransformer(
                        str(self.folder),
                        device="cpu",
                        local_files_only=True,
                        trust_remote_code=False,
                        model_kwargs={"use_safetensors": True, "dtype": "float32"},
                    )
            except Exception as error:  # the library lets through whatever torch, transformers and json raise
                raise CorruptionError(
                    f"{self.folder} cannot be loaded: {' '.join(str(error).split())[:200]}",
                    "a sentence encoder",
                    "copy the folder again, or name another",
                ) from error
        return self._model


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bar that transformers draws while it loads."""
    from transformers import utils

    logging: Any = utils.logging
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()
