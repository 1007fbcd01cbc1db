"""params.yaml made typed. Science parameters enter every step key; site parameters enter none.

Loads with stdlib, numpy, pydantic and yaml only, so that a check of a parameter file never waits for torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from opd_evolver.errors import SetupError
from opd_evolver.records import LEVELS, canonical_json, digest_of
from opd_evolver.sections import (
    AttributionParams,
    BenchmarkParams,
    ContractParams,
    DialectName,
    EnvironmentParams,
    FastParams,
    FlowParams,
    GateParams,
    HeadroomParams,
    LoraParams,
    MemoryParams,
    PolicyParams,
    Section,
    SlowParams,
)

PRESETS = ("micro", "laptop", "evidence", "qwen3-4b-1gpu")


__all__ = [
    "PRESETS",
    "AttributionParams",
    "BenchmarkParams",
    "ContractParams",
    "DialectName",
    "EnvironmentParams",
    "FastParams",
    "FlowParams",
    "GateParams",
    "HeadroomParams",
    "LoraParams",
    "MemoryParams",
    "Params",
    "PolicyParams",
    "Section",
    "SlowParams",
    "flat",
    "load",
    "load_preset",
    "merge",
    "nearest",
    "parse_set",
    "read_yaml",
    "validate",
]


# (section, key, value that does what was done before the key existed)
ADDED: tuple[tuple[str, str, Any], ...] = (
    ("policy", "thinking", False),
    ("fast", "maintain_episodes", 1),
    ("slow", "processes", 1),
    ("slow", "act_with_memory", 0.0),
    ("slow", "prefix_weights", False),
    ("slow", "write_rounds", 1),
    ("slow", "interpolation", 1.0),
    ("slow", "gradient_checkpointing", False),
    ("attribution", "rounds", 0),
    ("attribution", "asked_only", False),
    ("attribution", "sure", False),
    ("memory", "selector", "policy"),
    ("memory", "levels", list(LEVELS)),
    ("environments", "headroom", HeadroomParams().model_dump(mode="json")),
)


class Params(Section):
    """All science parameters, and `flows`, which alone enters no key."""

    preset: str = "laptop"
    seed: int = 0
    rounds: int = Field(3, gt=0)
    policy: PolicyParams = PolicyParams()
    environments: EnvironmentParams = EnvironmentParams()
    memory: MemoryParams = MemoryParams()
    fast: FastParams = FastParams()
    attribution: AttributionParams = AttributionParams()
    slow: SlowParams = SlowParams()
    benchmark: BenchmarkParams = BenchmarkParams()
    gate: GateParams = GateParams()
    contracts: ContractParams = ContractParams()
    flows: FlowParams = FlowParams()

    def science(self) -> dict[str, Any]:
        """What decides results: everything but `flows`, `rounds` (more rounds extend a run) and the preset's name.

        A parameter that came after runs existed counts only where it differs from what was done before.
        """
        tree = self.model_dump(mode="json", exclude={"flows", "rounds", "preset"})
        for section, key, before in ADDED:
            if tree[section][key] == before:
                del tree[section][key]
        return tree

    def digest(self) -> str:
        """sha256 of the science parameters; part of every step key."""
        return digest_of([canonical_json(self.science())])


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"did you mean `{close[0]}`?" if close else "see params.yaml for all keys"


def _explain(error: ErrorDetails, source: str) -> SetupError:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return SetupError(
            f"unknown parameter `{where}` in {source}",
            "a key of params.yaml",
            nearest(where, flat(Params().model_dump())),
        )
    return SetupError(
        f"parameter `{where}` = {error['input']!r} in {source}", error["msg"], f"set {where} to such a value"
    )


def validate(tree: Mapping[str, Any], source: str) -> Params:
    """Check a tree of values.

    Raises:
        SetupError: unknown or wrong key; names the nearest one.
    """
    try:
        return Params.model_validate(dict(tree))
    except ValidationError as error:
        raise _explain(error.errors()[0], source) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """One mapping from a YAML file.

    Raises:
        SetupError: missing, unreadable or not a mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SetupError(
            f"no file {path}", "a parameter file", "run in the project's folder, or give --preset"
        ) from None
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}", "a readable file", f"chmod u+r {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is not YAML: {error}".replace("\n", " "), "a YAML mapping", f"mend {path}") from None
    if not isinstance(tree, dict):
        raise SetupError(f"{path} holds {type(tree).__name__}", "a YAML mapping", f"mend {path}")
    return tree


def load_preset(name: str) -> Params:
    """A preset shipped in the package; one that `extends` another says only what differs."""
    if name not in PRESETS:
        raise SetupError(f"unknown preset `{name}`", " | ".join(PRESETS), nearest(name, PRESETS))
    with resources.as_file(resources.files("opd_evolver") / "presets" / f"{name}.yaml") as path:
        tree = read_yaml(path)
    base = tree.pop("extends", None)
    found = merge(load_preset(base), flat(tree), f"preset {name}") if base else validate(tree, f"preset {name}")
    return found.model_copy(update={"preset": name})


def merge(params: Params, overrides: Mapping[str, Any], source: str) -> Params:
    """Overrides by dotted key, e.g. {"fast.wave_tasks": 1}; a section, e.g. {"fast": {"wave_tasks": 1}}, stands for
    the keys it names.

    Raises:
        SetupError: unknown or wrong key; or `preset`, which names where the values came from and changes none.
    """
    if "preset" in overrides:
        raise SetupError(f"`preset` in {source}", "a key whose value decides something", "use --preset NAME")
    tree = params.model_dump(mode="json")
    known = flat(tree)
    for key, value in _dotted(params, overrides):
        node = tree
        *parents, leaf = key.split(".")
        for part in parents:
            child = node.get(part)
            if not isinstance(child, dict):
                raise SetupError(f"unknown parameter `{key}` in {source}", "a key of params.yaml", nearest(key, known))
            node = child
        if leaf not in node:
            raise SetupError(f"unknown parameter `{key}` in {source}", "a key of params.yaml", nearest(key, known))
        node[leaf] = value
    return validate(tree, source)


def _dotted(section: Section, overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in overrides.items():
        inside: Any = section
        for part in str(key).split("."):
            inside = getattr(inside, part, None)
        if isinstance(inside, Section) and isinstance(value, Mapping):
            yield from _dotted(inside, value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_set(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` strings of --set; values are YAML scalars."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, sep, raw = pair.partition("=")
        if not sep or not key:
            raise SetupError(f"--set {pair}", "key=value", "for example --set rounds=2")
        try:
            out[key] = yaml.safe_load(raw)
        except yaml.YAMLError:
            raise SetupError(f"--set {pair}", "a YAML value", f"quote it: --set '{key}=\"…\"'") from None
    return out


def load(path: Path | None = None, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> Params:
    """The resolved parameters: a preset, or the project's params.yaml, with overrides on top.

    Raises:
        SetupError: a file, key or value is wrong, or the file says that its values come from no known preset.
    """
    if preset is not None:
        params = load_preset(preset)
    else:
        file = path or Path("params.yaml")
        params = validate(read_yaml(file), str(file))
        if params.preset not in PRESETS:
            raise SetupError(
                f"unknown preset `{params.preset}` in {file}",
                " | ".join(PRESETS),
                "name the one its values began from; --preset NAME takes a shipped one instead",
            )
    return merge(params, overrides or {}, "--set")
