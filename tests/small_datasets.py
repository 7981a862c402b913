"""Vectors of a tiny network, and what a folder holds, for the tests of parameter datasets."""

import torch

from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3

NETWORK = {"in_features": 4, "hidden": (3, 2), "num_classes": 2}
LAYOUT = ParameterLayout.from_model(mlp3(**NETWORK))
D = LAYOUT.num_parameters


def make_vectors(rows=6, seed=0):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
