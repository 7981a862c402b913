"""Vectors of a tiny network, and what a folder holds, for the tests of parameter datasets."""

import json

import pyarrow.parquet as pq
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


def unlist(folder):
    """Make `stats.json` as it was before it listed the shards, or as whoever changes one on purpose makes it."""
    stats = json.loads((folder / "stats.json").read_text())
    stats.pop("shards", None)
    (folder / "stats.json").write_text(json.dumps(stats))


def rewrite(table, file):
    """Write a shard anew, as others do, who know nothing of `stats.json`."""
    pq.write_table(table, file)
    (file.parent.parent / "stats.json").unlink(missing_ok=True)
