"""`python -m opd_evolver.seed --out FOLDER`: train the seed policy and save it in Hugging Face form."""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from opd_evolver.durable import new_folder, write_text
from opd_evolver.errors import OpdError, SetupError
from opd_evolver.records import LEVELS
from opd_evolver.seed.settings import SeedSettings

CARD = Path(__file__).with_name("card.md")
# Paragraphs of the card that hold for the shipped policy alone, and what others say there.
ELSE = {
    "**Made by**": "**Made by** `python -m opd_evolver.seed` from scratch, with seed {seed} and what else\n"
    "`training.json` beside this card says, on {device}, without any download.",
    "**Measures**": "**Measures**: none were taken by the training; `opd evaluate FOLDER` takes them.\n",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m opd_evolver.seed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, replaced as a whole")
    parser.add_argument("--work", type=Path, default=Path("runs/seed-policy"), help="folder of the training state")
    parser.add_argument("--steps", type=int, default=SeedSettings().steps)
    parser.add_argument("--polish-steps", type=int, default=SeedSettings().polish_steps)
    parser.add_argument("--wording-steps", type=int, default=SeedSettings().wording_steps)
    parser.add_argument("--drill-steps", type=int, default=SeedSettings().drill_steps)
    parser.add_argument("--seed", type=int, default=SeedSettings().seed)
    parser.add_argument("--domains", nargs="+", default=SeedSettings().domains, help="procedural environments")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=SeedSettings().levels, help="of the families")
    parser.add_argument(
        "--worded", type=float, default=SeedSettings().worded_share, help="share of tips in other words"
    )
    parser.add_argument("--kernel", type=int, default=SeedSettings().kernel, help="words a convolution looks back on")
    parser.add_argument("--workers", type=int, default=2, help="processes; the weights do not depend on it")
    parser.add_argument(
        "--device", default="cpu", help="cuda: minutes, but not the same bytes again; workers make data"
    )
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--keep", action="store_true", help="also save the policy of every state, under --work")
    return parser


def save(model: Any, tokenizer: Any, folder: Path, training: dict[str, Any] | None = None) -> None:
    """Write weights, tokenizer, card and training record as one folder."""
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        # Temporary files are private; the policy is for whoever may read the project.
        (temporary / "model.safetensors").chmod(0o644)
        if training is not None:
            write_text(temporary / "training.json", json.dumps(training, indent=1) + "\n")
            write_text(temporary / "README.md", card(training))


def card(training: dict[str, Any]) -> str:
    """The model card of a training; the shipped policy's measures stand on its own card only."""
    settings, device = training["settings"], training["device"]
    text = CARD.read_text(encoding="utf-8")
    if settings == SeedSettings().model_dump(mode="json") and device == "cpu":
        return text
    paragraphs = text.split("\n\n")
    for begin, other in ELSE.items():
        (place,) = [n for n, one in enumerate(paragraphs) if one.startswith(begin)]
        paragraphs[place] = other.format(seed=settings["seed"], device=device)
    return "\n\n".join(paragraphs)


def _record(settings: SeedSettings, trained: Any, device: str) -> dict[str, Any]:
    import numpy
    import tokenizers
    import torch
    import transformers

    return {
        "settings": settings.model_dump(mode="json"),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "conversations": sum(line["conversations"] for line in trained.curve),
        "seconds": round(trained.seconds),
        "final": trained.curve[-1],
        "curve": trained.curve[9::10],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": numpy.__version__,
        },
    }


def _target(out: Path) -> Path:
    """Where the policy's folder comes to lie, if one can be made there."""
    target = out.resolve()
    if Path.cwd().is_relative_to(target):
        raise SetupError(f"--out {out}: you are in that folder", "one to replace as a whole", f"--out {out / 'policy'}")
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"):
            return target
    except OSError as error:
        raise SetupError(
            f"cannot write --out {out}: {error.strerror}", "a parent folder that can be written", "give another --out"
        ) from error


def _check_steps(settings: SeedSettings) -> None:
    fewest = min(settings.steps, settings.polish_steps, settings.wording_steps, settings.drill_steps)
    if fewest < 0 or settings.all_steps == 0:
        raise SetupError(f"{fewest} training steps", "at least one, none of a kind below 0", "set --steps 1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save, report; exit codes as `opd`."""
    parser = _parser()
    given = parser.parse_args(arguments)
    from opd_evolver.seed.model import quiet
    from opd_evolver.seed.train import train

    quiet()
    settings = SeedSettings(
        seed=given.seed,
        steps=given.steps,
        polish_steps=given.polish_steps,
        wording_steps=given.wording_steps,
        drill_steps=given.drill_steps,
        domains=tuple(given.domains),
        levels=tuple(given.levels),
        worded_share=given.worded,
        kernel=given.kernel,
    )

    def keep(model: Any, tokenizer: Any, step: int) -> None:
        save(model, tokenizer, given.work / f"step-{step:05d}")

    try:
        _check_steps(settings)
        out = _target(given.out)
        trained = train(
            settings,
            given.work,
            n_workers=given.workers,
            save_every=given.save_every,
            on_save=keep if given.keep else None,
            device=given.device,
        )
        save(trained.model, trained.tokenizer, out, _record(settings, trained, given.device))
        trained.state.unlink(missing_ok=True)
    except OpdError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from the last state\n")
    print(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
