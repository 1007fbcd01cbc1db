"""What of the policy is trained: all weights, or a LoRA adapter over frozen ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from opd_evolver.errors import SetupError
from opd_evolver.params import LoraParams, SlowParams


class Adapter:
    """A model made trainable in place.

    Args:
        model: a Hugging Face causal LM; with LoRA its layers are wrapped in place, in full training all of it is
            float32 until it is saved.
        params: `slow.adapter` and `slow.lora`.
        seed: fixes the adapter's first weights.

    Attributes:
        model: the model to score and sample with; the same object as given.
        peft: the peft model around it, None in full training.

    Raises:
        SetupError: none of `slow.lora.targets` is a module of this model.

    Paper: LoRA r 32, alpha 64, dropout 0.05 on q, k, v, o, gate, up, down.
    """

    def __init__(self, model: Any, params: SlowParams, seed: int) -> None:
        self.model = model
        self.peft: Any = None
        self._share = params.interpolation
        if params.adapter == "lora":
            self.peft = _with_lora(model, params.lora, seed)
        else:
            # In bfloat16 a small update would be rounded away.
            self._served = {name: tensor.dtype for name, tensor in _tensors(model)}
            model.float().requires_grad_(True)
        whole = self.peft is None and self._share < 1.0
        self._first = {name: weight.detach().clone() for name, weight in self.trainable()} if whole else {}

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Name and parameter, in the model's order; tied weights once."""
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    @contextmanager
    def frozen(self) -> Iterator[Any]:
        """The model as it was before training. LoRA only: full training keeps a copy instead."""
        with self.peft.disable_adapter() if self.peft is not None else nullcontext():
            yield self.model

    def keep_no_activations(self) -> None:
        """Compute each layer's activations again in the backward pass instead of keeping them; results are the same.

        Raises:
            SetupError: the architecture cannot.
        """
        if not getattr(self.model, "supports_gradient_checkpointing", False):
            raise SetupError(
                f"slow.gradient_checkpointing = true: {type(self.model).__name__} cannot compute activations again",
                "an architecture that transformers can do that for",
                "set slow.gradient_checkpointing=false",
            )
        # Earlier releases of transformers 5 have the second name alone.
        newer = getattr(self.model, "activation_checkpointing_enable", None)
        (newer or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def interpolate(self) -> None:
        """Keep `slow.interpolation` of the way from the first weights to the trained ones.

        Call it once, after training. With LoRA the way is its product, which is linear in B.
        Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models.
        """
        if self._share == 1.0:
            return
        with torch.no_grad():
            for name, weight in self.trainable():
                if self.peft is None:
                    weight.copy_(torch.lerp(self._first[name], weight, self._share))
                elif ".lora_B." in name:
                    weight.mul_(self._share)

    def save(self, tokenizer: Any, target: Path, bare: Path) -> None:
        """The policy in Hugging Face form, as precise as it was; with LoRA merged by this, and the bare adapter kept.

        Args:
            tokenizer: goes with the model.
            target: folder of the policy.
            bare: folder of the adapter alone; not written in full training.
        """
        from opd_evolver.policy.local import save

        model = self.model
        if self.peft is not None:
            save(self.peft, tokenizer, bare)
            model = self.peft.merge_and_unload()
        else:
            for name, tensor in _tensors(model):
                tensor.data = tensor.to(self._served[name])
        save(model, tokenizer, target)


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from chain(model.named_parameters(), model.named_buffers())


def lora_targets(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """Those of the wanted module names that this model has as linear layers.

    Raises:
        SetupError: none; names some that it has.
    """
    linear = {name.rpartition(".")[2] for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    found = [name for name in wanted if name in linear]
    if not found:
        raise SetupError(
            f"slow.lora.targets = {', '.join(wanted)}: {type(model).__name__} has none of them",
            f"linear layers such as {', '.join(sorted(linear - {'lm_head'}))}",
            "set slow.lora.targets",
        )
    return found


def _with_lora(model: Any, params: LoraParams, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=params.r,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules=lora_targets(model, params.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)
