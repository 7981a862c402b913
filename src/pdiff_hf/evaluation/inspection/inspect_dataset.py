"""Inspection of a parameter dataset before training: defects, geometry, behaviour, cost, and advice."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ...data.dataset import ParameterDataset
from ...data.vectors import split_rows
from ...layout import ParameterLayout
from ...models.normalizer import ParameterNormalizer
from ..evaluator import ParameterEvaluator
from .advice import DEFAULTS, make_advice
from .cost import autoencoder_costs
from .functional import functional_figures
from .geometry import (
    autocorrelation,
    autocorrelation_time,
    gram_matrix,
    linear_explained_variance,
    nearest_distances,
    spectrum,
)

SCHEMA = 1

# The figures of a run whose rows cannot be used.
UNKNOWN_RUN = {
    "constant_tensors": [],
    "num_constant_parameters": 0,
    "duplicate_rows": [],
    "autocorrelation": {},
    "autocorrelation_time": None,
    "effective_rows": 0.0,
}

# Left out one after another; each costs an eigendecomposition.
MAX_LEFT_OUT_RUNS = 10

# Values of one column block, 64 MB in float32.
BLOCK_VALUES = 2**24


def find_non_finite(vectors: torch.Tensor, layout: ParameterLayout) -> tuple[torch.Tensor, dict[str, int]]:
    """Whether each row `(K, D)` is finite, `bool` `(K,)`; and of the tensors that are not, in how many rows."""
    # Sums are NaN or infinite wherever a value is, and a mask of all values would cost too much memory.
    finite = vectors.sum(1).isfinite()
    tensors: dict[str, int] = {}
    for row in (~finite).nonzero()[:, 0].tolist():
        broken = [name for name, value in layout.unflatten(vectors[row]).items() if not value.isfinite().all()]
        # Without such a value the sum has overflown.
        finite[row] = not broken
        tensors |= {name: tensors.get(name, 0) + 1 for name in broken}
    return finite, tensors


def find_copies(
    vectors: torch.Tensor, layout: ParameterLayout, runs: Mapping[str, torch.Tensor]
) -> tuple[dict, dict[str, dict]]:
    """Find constant tensors and coordinates, and exact copies of finite rows `(K, D)` and of tensors.

    Returns:
        `tuple[dict, dict[str, dict]]`: of the whole dataset and of every run `constant_tensors` (names),
        `num_constant_parameters` and `duplicate_rows` (lists of rows that are equal); of the dataset also
        `duplicate_tensors` (lists of names that are equal in every row and not constant). In a single row nothing is
        called constant.
    """
    names = [spec.name for spec in layout.tensors if spec.numel]
    digests: list[tuple[bytes, ...]] = []
    for row in vectors.contiguous().numpy():
        own = (row[spec.offset : spec.offset + spec.numel] for spec in layout.tensors if spec.numel)
        digests.append(tuple(hashlib.blake2b(values, digest_size=16).digest() for values in own))

    def describe(rows: torch.Tensor) -> dict:
        found = [digests[row] for row in rows.tolist()]
        columns = zip(names, zip(*found, strict=True), strict=True)
        constant = [name for name, column in columns if len(found) > 1 and len(set(column)) == 1]
        copies = _equal(dict(zip(rows.tolist(), found, strict=True)))
        return {"constant_tensors": constant, "num_constant_parameters": 0, "duplicate_rows": copies}

    everything = torch.arange(len(vectors))
    whole, of_runs = describe(everything), {run: describe(rows) for run, rows in runs.items()}
    columns = dict(zip(names, zip(*digests, strict=True), strict=True))
    whole["duplicate_tensors"] = _equal({n: c for n, c in columns.items() if n not in whole["constant_tensors"]})
    for block in vectors.split(max(1, BLOCK_VALUES // len(vectors)), 1):
        for entry, rows in [(whole, everything), *((of_runs[run], rows) for run, rows in runs.items())]:
            if len(rows) > 1:
                entry["num_constant_parameters"] += int((block[rows] == block[rows[0]]).all(0).sum())
    return whole, of_runs


def _equal(values: Mapping) -> list[list]:
    """Keys of equal values, in lists of two and more."""
    groups = defaultdict(list)
    for key, value in values.items():
        groups[value].append(key)
    return [keys for keys in groups.values() if len(keys) > 1]


def inspect_dataset(
    dataset: ParameterDataset | str | Path,
    evaluator: ParameterEvaluator | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> dict:
    """Inspect a parameter dataset before anything is trained on it.

    Rows with NaN or infinite values are reported and left out of all other figures.

    Args:
        dataset ([`ParameterDataset`], `str` or `Path`): A parameter dataset.
        evaluator ([`ParameterEvaluator`], *optional*): On the validation examples; without it, barriers and the gain
            of averaging are not measured.
        device (`torch.device` or `str`, *optional*): Where the autoencoder would be trained; a GPU if there is one.
        seed (`int`, *optional*, defaults to 0): Of the rows, pairs and examples that are drawn.

    Returns:
        `dict`: the keys of `docs/inspect.md`, JSON-able.

    Raises:
        ValueError: the folder is no parameter dataset, or is damaged.
    """
    begin = time.perf_counter()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dataset = ParameterDataset.of(dataset)
    layout, base_model = dataset.layout, dataset.base_model
    vectors, names, steps = _read(dataset)

    # 1. Rows that can be used, by run and in the order of their steps
    finite, broken = find_non_finite(vectors, layout)
    kept = finite.nonzero()[:, 0]
    if len(kept) < len(vectors):
        vectors = vectors[kept]
    order = sorted(range(len(kept)), key=lambda index: steps[kept[index]])
    own = [names[row] for row in kept.tolist()]
    runs = {name: torch.tensor([i for i in order if own[i] == name]) for name in dict.fromkeys(own)}
    report = {
        "schema": SCHEMA,
        "num_rows": len(names),
        "num_parameters": layout.num_parameters,
        "num_tensors": len(layout.tensors),
        "base_model": None if base_model is None else base_model.name,
        "non_finite": {"rows": (~finite).nonzero()[:, 0].tolist(), "tensors": broken},
        "runs": {
            name: {"num_rows": names.count(name), "num_finite_rows": own.count(name), **UNKNOWN_RUN}
            for name in dict.fromkeys(names)
        },
        **dict.fromkeys(("copies", "geometry", "functional", "autoencoders")),
    }
    if len(kept) > 1:
        # 2. Copies; rows are named by their place in the dataset
        report["copies"], of_runs = find_copies(vectors, layout, runs)
        for entry in (report["copies"], *of_runs.values()):
            entry["duplicate_rows"] = [kept[rows].tolist() for rows in entry["duplicate_rows"]]
        for name, entry in of_runs.items():
            report["runs"][name] |= entry

        # 3. Geometry, in the space in which the default autoencoder works
        fit_begin = time.perf_counter()
        with torch.device("meta"):
            mode = DEFAULTS.build(layout.to_dict()).normalizer.mode
        normalizer = ParameterNormalizer(layout.num_parameters, mode, layout.to_dict())
        normalizer.fit(vectors)
        gram = gram_matrix(vectors, normalizer)
        pca_seconds = time.perf_counter() - fit_begin
        for name, rows in runs.items():
            report["runs"][name] |= _memory(gram[rows][:, rows])
        numbers = torch.tensor([list(runs).index(name) for name in own])
        report["geometry"] = {
            "normalization": mode,
            **spectrum(gram),
            "effective_rows": sum(entry["effective_rows"] for entry in report["runs"].values()),
            "reconstruction": _reconstruction(gram, numbers, seed),
            "distances": nearest_distances(vectors, numbers),
        }

        # 4. What the networks do
        if evaluator is not None:
            report["functional"] = functional_figures(vectors, numbers, evaluator, seed)

        # 5. What training would cost
        report["autoencoders"] = autoencoder_costs(vectors, layout, device, pca_seconds)
    report["advice"] = make_advice(report)
    report["seconds"] = time.perf_counter() - begin
    return report


def _read(dataset: ParameterDataset) -> tuple[torch.Tensor, list[str], list[int]]:
    """Vectors `(K, D)`, finite or not, and run and step of every row."""
    table = dataset.rows.with_format("arrow")[:]
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column("parameters").chunks]
    vectors = torch.from_numpy(np.concatenate(chunks).reshape(len(table), dataset.layout.num_parameters))
    return vectors, table.column("run").to_pylist(), table.column("step").to_pylist()


def _memory(gram: torch.Tensor) -> dict:
    """Autocorrelation of one run at lags 1, 2, 4, …, its time, and the rows that are left when it is divided out."""
    correlations = autocorrelation(gram)
    time = autocorrelation_time(correlations)
    lags = [2**power for power in range(len(gram).bit_length()) if 2**power < len(gram)]
    return {
        "autocorrelation": {str(lag): correlations[lag].item() for lag in lags},
        "autocorrelation_time": time,
        "effective_rows": len(gram) / time,
    }


def _reconstruction(gram: torch.Tensor, runs: torch.Tensor, seed: int) -> dict:
    """Variance that as many components as the default latent has values explain of rows they were not fitted to."""
    latents = DEFAULTS.latent_channels * DEFAULTS.latent_length
    train, heldout = split_rows(len(gram), DEFAULTS.holdout_every)
    figures = {"num_train": len(train), "num_heldout": len(heldout), "heldout": None, "left_out_run": None}
    if len(heldout) and len(train) > 1:
        figures["heldout"] = linear_explained_variance(gram, train, heldout, latents)
    numbers = runs.unique()
    if len(numbers) > 1:
        chosen = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))]
        left_out = [
            linear_explained_variance(gram, runs != number, runs == number, latents)
            for number in chosen[:MAX_LEFT_OUT_RUNS]
        ]
        found = [share for share in left_out if share is not None]
        figures["left_out_run"] = sum(found) / len(found) if found else None
    return figures
