"""Merges of LoRA adapters by peft itself: what each is worth, and how far it is from the mean that it stands for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...adapters.gauge import lora_pairs
from ...adapters.network import require_peft
from ...base_model import BaseModel
from ...data.vectors import Vectors
from ...forward import forward_logits
from ...layout import ParameterLayout
from ...peft_model import lora_layers
from ...results.merges import Merge

if TYPE_CHECKING:
    from peft import PeftModel

# By their names in peft, with what they do. Those that leave values out at random begin from one seed.
METHODS = {
    "cat": "the exact mean of ΔW, of all ranks together",
    "svd": "its best approximation of the rank of one",
    "linear": "means of A and of B, weighted by roots",
    "ties": "TIES on A and on B (arXiv 2306.01708)",
    "ties_svd": "TIES on ΔW, then the best rank",
    "dare_linear": "DARE on A and on B (arXiv 2311.03099)",
    "dare_ties": "DARE and TIES on A and on B",
    "magnitude_prune": "the largest values of A and of B",
}
DENSITY = 0.5
# peft keeps all of them in one network, and each costs more than the one before.
MAX_ADAPTERS = 16
BATCH = 256
PROBE = 64


def why_not_merged(base_model: BaseModel, layout: ParameterLayout) -> str | None:
    """Why peft's merges are not for the adapters of a dataset; `None` where they are."""
    config = base_model.adapter
    if config is None or config["peft_type"] != "LORA" or not lora_pairs(layout):
        return "they are no adapters with factors A and B"
    for key, what in (("use_dora", "DoRA, whose magnitudes"), ("lora_bias", "LoRA with a bias, which")):
        if config.get(key):
            return f"they are of {what} peft leaves out of a merge"
    if config.get("bias", "none") != "none":
        return "they have biases of the base, which peft leaves out of a merge"
    if any(pair.groups > 1 for pair in lora_pairs(layout)):
        return "they are of grouped convolutions, whose ΔW peft does not compute"
    return None


class AdapterMerger:
    """Adapters of a dataset in one network of peft, heads averaged alike for every merge.

    Scalings are in the factors, so that rank, alpha and rslora play no part: merging adapters of rslora as they are
    makes peft multiply them by √r once more.

    Args:
        base_model ([`BaseModel`]), layout ([`ParameterLayout`]): Of the dataset.
        rows (`Vectors` of shape `(n, D)`): The adapters, [`MAX_ADAPTERS`] at most.
    """

    def __init__(self, base_model: BaseModel, layout: ParameterLayout, rows: Vectors):
        peft = require_peft()
        rows = rows[:].float()
        own = base_model.build()
        # Heads saved beside adapters; the factors of the mean are not looked at.
        layout.load_into(own, rows.mean(0))
        self.scalings = {name: float(layer.scaling["default"]) for name, layer in lora_layers(own).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.base = own.unload().eval()
        prefix, pairs = "base_model.model.", lora_pairs(layout)
        rank = base_model.adapter["r"]
        config = {"r": rank, "lora_alpha": rank, "fan_in_fan_out": base_model.adapter.get("fan_in_fan_out", False)}
        config["target_modules"] = [pair.layer.removeprefix(prefix) for pair in pairs]
        self.names = [f"a{number}" for number in range(len(rows))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, name in enumerate(self.names):
                settings = peft.LoraConfig(**copy.deepcopy(config))
                if number == 0:
                    self.model: PeftModel = peft.get_peft_model(copy.deepcopy(self.base), settings, adapter_name=name)
                else:
                    self.model.add_adapter(name, settings)
                values = {}
                for pair in pairs:
                    b, a = (row[0] for row in pair.factors(rows[number : number + 1]))
                    values[self._key(pair.a.name)] = a.reshape(pair.a.shape)
                    values[self._key(pair.b.name)] = b.reshape(pair.b.shape) * self.scalings[pair.layer]
                peft.set_peft_model_state_dict(self.model, values, adapter_name=name)
        self.model.eval()
        self.mean = self._mean_delta()

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".default", "")

    def _layers(self) -> Iterator[nn.Module]:
        yield from lora_layers(self.model).values()

    def _mean_delta(self) -> list[torch.Tensor]:
        return [
            sum(layer.get_delta_weight(name).double() for name in self.names) / len(self.names)
            for layer in self._layers()
        ]

    def merge(self, method: str, names: list[str] | None = None, into: str = "merged") -> None:
        """Add a merge of adapters with equal weights that sum to one, and make it the active one.

        Raises:
            ValueError: peft does not merge these.
        """
        names = names or self.names
        options = {} if method in ("cat", "svd", "linear") else {"density": DENSITY}
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if into in self.model.peft_config:
                self.model.delete_adapter(into)
            weights = [1 / len(names)] * len(names)
            self.model.base_model.add_weighted_adapter(names, weights, into, combination_type=method, **options)
            self.model.set_adapter(into)

    @property
    def delta_error(self) -> float:
        """Distance of the active merge from the exact mean of ΔW, over the norm of that."""
        name = self.model.active_adapter
        parts = zip(self._layers(), self.mean, strict=True)
        squares = [
            (((layer.get_delta_weight(name).double() - mean) ** 2).sum(), (mean**2).sum()) for layer, mean in parts
        ]
        return (sum(a for a, _ in squares) / sum(b for _, b in squares).clamp_min(1e-30)).sqrt().item()

    @torch.no_grad()
    def logits(self, inputs: torch.Tensor, model: nn.Module | None = None) -> torch.Tensor:
        """Logits `(N, classes)` with the active adapter."""
        network = self.model if model is None else model
        return torch.cat([forward_logits(network, batch).float() for batch in inputs.split(BATCH)])

    def identity_error(self, method: str, inputs: torch.Tensor) -> float:
        """By how much of their spread the logits differ from those of one adapter, when it is merged with weight 1."""
        self.model.set_adapter(self.names[0])
        own = self.logits(inputs)
        self.merge(method, self.names[:1], "one")
        found = self.logits(inputs)
        self.model.set_adapter(self.names[0])
        self.model.delete_adapter("one")
        return _difference(found, own)

    def reload_error(self, inputs: torch.Tensor) -> float:
        """By how much of their spread the logits differ from those of the active merge, written and loaded again."""
        peft, name = require_peft(), self.model.active_adapter
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
            again = peft.PeftModel.from_pretrained(copy.deepcopy(self.base), Path(folder) / name).eval()
        return _difference(self.logits(inputs, again), self.logits(inputs))


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).square().mean().sqrt() / wanted.std().clamp_min(1e-12)).item()


def evaluate_merges(
    base_model: BaseModel,
    layout: ParameterLayout,
    rows: Vectors,
    examples: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, Merge]:
    """Merge adapters by every method of peft, and judge what comes out.

    Args:
        base_model ([`BaseModel`]), layout ([`ParameterLayout`]): Of the dataset.
        rows (`Vectors` of shape `(n, D)`): The adapters; of more than [`MAX_ADAPTERS`], as many evenly spread ones.
        examples (`Mapping`): Inputs and labels of `"val"` and of `"test"`.

    Returns:
        `dict[str, Merge]`: by method; of one that peft refuses, why. The mean of single adapters is `single`, their
        best one on validation examples `best_single`, and the mean of all parameters `mean_factors`.

    Raises:
        ValueError: peft is not installed, or its merges are not for these adapters.
    """
    if (reason := why_not_merged(base_model, layout)) is not None:
        raise ValueError(f"adapters cannot be merged: {reason}.")
    some = torch.linspace(0, len(rows) - 1, min(len(rows), MAX_ADAPTERS)).round().long()
    merger = AdapterMerger(base_model, layout, rows[some])
    probe = examples["val"][0][:PROBE]

    def accuracies(model: nn.Module | None = None) -> dict[str, float]:
        return {
            f"{split}_accuracy": (merger.logits(inputs, model).argmax(1) == labels).double().mean().item()
            for split, (inputs, labels) in examples.items()
        }

    # 1. Single adapters, with heads of their own, and the mean of all that they are made of
    own, found = base_model.build(), {}
    singles = []
    for row in rows[some]:
        layout.load_into(own, row)
        singles.append(accuracies(own))
    mean = {key: sum(one[key] for one in singles) / len(singles) for key in singles[0]}
    found["single"] = Merge(description="single adapters, on average", num=len(singles), **mean)
    best = max(singles, key=lambda one: one["val_accuracy"])
    found["best_single"] = Merge(description="the best of them on validation examples", num=1, **best)
    layout.load_into(own, rows[some].mean(0))
    found["mean_factors"] = Merge(description="the mean of all parameters", num=len(singles), **accuracies(own))

    # 2. What peft makes of them
    for method, description in METHODS.items():
        merge = found[method] = Merge(description=description, num=len(singles))
        try:
            merge.identity_error = merger.identity_error(method, probe)
            merger.merge(method)
            merge.delta_error = merger.delta_error
            merge.val_accuracy, merge.test_accuracy = (accuracies()[f"{split}_accuracy"] for split in ("val", "test"))
            merge.reload_error = merger.reload_error(probe)
        except Exception as error:  # whatever peft raises is what the row says
            merge.note = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return found
