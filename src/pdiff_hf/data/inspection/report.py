"""All figures of an inspection in one JSON-able report."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from ...evaluation.evaluator import ParameterEvaluator
from ...layout import ParameterLayout
from ...models.autoencoder_pdiff import PRESETS
from ...models.normalizer import ParameterNormalizer
from ...training.autoencoder import split_rows
from ..dataset import load_parameter_dataset, read_layout
from .advice import DEFAULTS, make_advice
from .cost import autoencoder_costs
from .defects import find_copies, find_non_finite
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
# Left out one after another; each costs an eigendecomposition.
MAX_LEFT_OUT_RUNS = 10


def inspect_dataset(
    dataset_dir: str | Path,
    evaluator: ParameterEvaluator | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    num_pairs: int = 10,
) -> dict:
    """Inspect a parameter dataset before anything is trained on it.

    Rows with NaN or infinite values are reported and left out of all other figures.

    Args:
        dataset_dir (`str` or `Path`): A parameter dataset.
        evaluator ([`ParameterEvaluator`], *optional*): On the validation images; without it, barriers and the gain of
            averaging are not measured.
        device (`torch.device` or `str`, *optional*): Where the autoencoder would be trained; a GPU if there is one.
        seed (`int`, *optional*, defaults to 0): Of the rows, pairs and images that are drawn.
        num_pairs (`int`, *optional*, defaults to 10): Pairs of networks between which the barrier is measured, of
            each kind.

    Returns:
        `dict`: the keys of `docs/inspect.md`, JSON-able.

    Raises:
        ValueError: the folder is no parameter dataset, or is damaged.
    """
    begin = time.perf_counter()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    base_model = read_layout(dataset_dir)[1]
    vectors, layout, names, steps = _read(dataset_dir)

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
            name: {
                "num_rows": names.count(name),
                "num_finite_rows": own.count(name),
                "constant_tensors": [],
                "num_constant_parameters": 0,
                "duplicate_rows": [],
                "autocorrelation": {},
                "autocorrelation_time": None,
                "effective_rows": 0.0,
            }
            for name in dict.fromkeys(names)
        },
        "copies": None,
        "geometry": None,
        "functional": None,
        "autoencoders": None,
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
        normalizer = ParameterNormalizer(layout.num_parameters, PRESETS["fast"]["normalization"], layout.to_dict())
        normalizer.fit(vectors)
        gram = gram_matrix(vectors, normalizer)
        pca_seconds = time.perf_counter() - fit_begin
        for name, rows in runs.items():
            report["runs"][name] |= _memory(gram[rows][:, rows])
        numbers = torch.tensor([list(runs).index(name) for name in own])
        report["geometry"] = {
            "normalization": normalizer.mode,
            **spectrum(gram),
            "effective_rows": sum(entry["effective_rows"] for entry in report["runs"].values()),
            "reconstruction": _reconstruction(gram, numbers, seed),
            "distances": nearest_distances(vectors, numbers),
        }

        # 4. What the networks do
        if evaluator is not None:
            report["functional"] = functional_figures(vectors, numbers, evaluator, seed, num_pairs)

        # 5. What training would cost
        report["autoencoders"] = autoencoder_costs(vectors, layout, device, pca_seconds)
    report["advice"] = make_advice(report)
    report["seconds"] = time.perf_counter() - begin
    return report


def _read(dataset_dir: str | Path) -> tuple[torch.Tensor, ParameterLayout, list[str], list[int]]:
    """Vectors, finite or not, layout, and run and step of every row."""
    dataset, layout = load_parameter_dataset(dataset_dir)
    table = dataset.with_format("arrow")[:]
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column("parameters").chunks]
    vectors = torch.from_numpy(np.concatenate(chunks).reshape(len(table), layout.num_parameters))
    return vectors, layout, table.column("run").to_pylist(), table.column("step").to_pylist()


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
    """What as many components as the default latent has values explain of rows they were not fitted to."""
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
