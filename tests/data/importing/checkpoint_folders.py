"""Folders of checkpoints as people have them: what each holds, and what an import of it must give."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib

import numpy as np
import timm
import torch
from torch import nn

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.importing.importer import import_checkpoints

CLASSES = 10
PREFIXES = ("model.", "backbone.", "model._orig_mod.", "model.module.", "module._orig_mod.", "encoder.net.")
SUFFIXES = (".pth.tar", ".th", ".ckpt", ".model", "")


def network(seed: int) -> nn.Module:
    """One of the networks that are saved."""
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=CLASSES).eval()


def trained_part(seed: int) -> dict[str, torch.Tensor]:
    """The tensors that a partial checkpoint holds."""
    torch.manual_seed(seed)
    state = network(seed).state_dict()
    named = {name for name in state if "layer4" in name and "bn" in name and "num" not in name}
    return {name: torch.rand_like(state[name]) for name in state if name in named and "running" not in name}


def prefixed(model: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Its state dict under a prefix."""
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


# What each file holds, of a network and its number.
FILES = {
    "namespace": lambda m, i: {"state_dict": m.state_dict(), "args": argparse.Namespace(lr=0.1)},
    "numpy scalar": lambda m, i: {"epoch": i, "state_dict": m.state_dict(), "best_acc": np.float64(0.5)},
    "path": lambda m, i: {"model": m.state_dict(), "args": {"data": pathlib.Path("x")}},
    "defaultdict": lambda m, i: {"model": m.state_dict(), "log": collections.defaultdict(list)},
    "config under model": lambda m, i: {"model": {"name": "x", "width": 8}, "state_dict": m.state_dict()},
    "optimizer": lambda m, i: {
        "state_dict": m.state_dict(),
        "optimizer": torch.optim.AdamW(m.parameters()).state_dict(),
        "scaler": {},
    },
    "whole module": lambda m, i: m,
    "unusual key": lambda m, i: {"model_state": m.state_dict(), "optimizer_state": {}},
    "nested": lambda m, i: {"checkpoint": {"state_dict": m.state_dict()}},
    "names in names": lambda m, i: {"weights": {"conv1": dict(m.conv1.named_parameters())}, "state": m.state_dict()},
    "averaged alone": lambda m, i: {"ema": m.state_dict(), "step": i},
    "values of numpy": lambda m, i: {name: tensor.numpy() for name, tensor in m.state_dict().items()},
    "scalar beside": lambda m, i: {**m.state_dict(), "epoch": i},
    "counters of a profiler": lambda m, i: {**m.state_dict(), "layer1.total_ops": torch.zeros(1, dtype=torch.double)},
    "the same twice": lambda m, i: {"model": m.state_dict(), "best": m.state_dict()},
    "without counters": lambda m, i: {
        "state_dict": {f"module.{n}": t for n, t in m.state_dict().items() if "num_batches" not in n},
        "best_prec1": 91.7,
    },
} | {f"prefix {p}": lambda m, i, p=p: {"state_dict": prefixed(m, p)} for p in PREFIXES}

# In these the first is the one to take, by a line that names the other.
AVERAGED = (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("params", "params_ema"), ("student", "teacher"))


def save(folder, make, names="epoch_{}.pt", count=3, **options):
    """Save networks 0, 1, … as `make` gives them."""
    for seed in range(count):
        path = folder / names.format(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(make(network(seed), seed), path, **options)
    return folder


def state_dict(model, _):
    """What most files hold."""
    return model.state_dict()


def write_config(folder, values):
    """A `config.json`."""
    (folder / "config.json").write_text(json.dumps(values))


BASE = BaseModel.timm("test_resnet", num_classes=CLASSES)
INPUTS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def run_import(source, out, **options):
    return import_checkpoints(source, out, **{"base_model": BASE, "progress": False, **options})


@torch.no_grad()
def logits(model):
    return model.eval().float()(INPUTS)


def rebuilt(folder):
    """Logits of the networks that the rows of a dataset rebuild."""
    dataset = ParameterDataset(folder)
    found = []
    for vector in dataset.vectors()[:]:
        model = dataset.base_model.build()
        model.load_state_dict({**model.state_dict(), **dataset.layout.unflatten(vector)}, strict=True)
        found.append(logits(model))
    return torch.stack(found)


def columns(folder, *names):
    table = ParameterDataset(folder).rows.with_format(None)
    return [table[name][:] for name in names]


def expected(*seeds):
    return torch.stack([logits(network(seed)) for seed in seeds])
