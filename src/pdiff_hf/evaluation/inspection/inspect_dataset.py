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
from ...data.order import RowOrder
from ...data.shards import MAX_VALUE
from ...data.vectors import split_rows
from ...layout import ParameterLayout
from ...machine import default_device, float64_device, precision_of
from ...models.auto import DENOISER
from ...models.config import AutoencoderConfig
from ...models.few_rows import MIN_HELD_OUT, MIN_ROWS, fit_to_rows
from ...models.normalizer import ParameterNormalizer
from ..autocorrelation import autocorrelation, autocorrelation_time
from ..evaluator import ParameterEvaluator
from ..reconstruction import poor_kinds
from ..scores import NetworkEvaluator
from ..similarity import gram_matrices
from ..tensor_kinds import column_kinds
from .actions import origin_of
from .advice import DEFAULTS, make_advice
from .cost import autoencoder_costs
from .families import farthest_tensor, find_families
from .functional import functional_figures, score_figures
from .gauge import gauge_figures
from .geometry import linear_explained_by_kind, linear_explained_variance, nearest_distances, spectrum, thin_out

SCHEMA = 1

# Of larger datasets, geometry and behaviour are those of as many rows: 1 500 take seconds, 10 000 took over 7 minutes.
MAX_ROWS = 2000

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
    """Whether each row `(K, D)` can be trained on, `bool` `(K,)`; and of tensors that cannot, in how many rows."""
    # A NaN is not below anything; a mask of all values would cost too much memory.
    finite = torch.stack([vectors.amax(1), -vectors.amin(1)]).amax(0) <= MAX_VALUE
    tensors: dict[str, int] = {}
    for row in (~finite).nonzero()[:, 0].tolist():
        state = layout.unflatten(vectors[row])
        broken = [name for name, value in state.items() if not (value.abs() <= MAX_VALUE).all()]
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


@precision_of("evaluation")
def inspect_dataset(
    dataset: ParameterDataset | str | Path,
    evaluator: NetworkEvaluator | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> dict:
    """Inspect a parameter dataset before anything is trained on it.

    Rows with NaN, infinite or absurdly large values are reported and left out of all other figures.

    Args:
        dataset ([`ParameterDataset`], `str` or `Path`): A parameter dataset.
        evaluator ([`NetworkEvaluator`], *optional*): On the validation examples; without it, barriers, the gain of
            averaging and functional diversity are not measured. Of another metric than accuracy, scores are.
        device (`torch.device` or `str`, *optional*): Where is computed, and where the autoencoder
            would be trained; the accelerator if there is one.
        seed (`int`, *optional*, defaults to 0): Of the rows, pairs and examples that are drawn.

    Returns:
        `dict`: the keys of `docs/inspect.md`, JSON-able.

    Raises:
        ValueError: the folder is no parameter dataset, or is damaged.
    """
    begin = time.perf_counter()
    # Of networks that only a score is known of, there are no predictions to compare.
    scorer = None
    if evaluator is not None and not evaluator.metric.is_accuracy:
        scorer, evaluator = evaluator, None
    device = torch.device(device or default_device())
    dataset = ParameterDataset.of(dataset)
    layout, base_model = dataset.layout, dataset.base_model
    vectors, order = _read(dataset)
    names, unordered = order.runs, order.unordered

    # 1. Rows that can be used, by run and in the order of their steps
    finite, broken = find_non_finite(vectors, layout)
    kept = finite.nonzero()[:, 0]
    if len(kept) < len(vectors):
        vectors = vectors[kept]
    own, runs = _by_run(kept, order)
    report = {
        "schema": SCHEMA,
        "dataset": str(dataset.source),
        "origin": origin_of(dataset.metadata),
        "is_aligned": "alignment" in dataset.metadata,
        "num_rows": len(names),
        "num_parameters": layout.num_parameters,
        "num_tensors": len(layout.tensors),
        "base_model": None if base_model is None else base_model.name,
        "task": None if dataset.task is None else dataset.task.get("dataset", dataset.task.get("function")),
        "conditions": dataset.describe_conditions(),
        "non_finite": {"rows": (~finite).nonzero()[:, 0].tolist(), "tensors": broken},
        "runs": {
            name: {
                "num_rows": names.count(name),
                "num_finite_rows": own.count(name),
                "is_ordered": name not in unordered,
                **UNKNOWN_RUN,
            }
            for name in dict.fromkeys(names)
        },
        **dict.fromkeys(
            ("num_examined", "copies", "geometry", "families", "functional", "score", "autoencoders", "gate", "gauge")
        ),
    }
    if len(kept) > 1:
        # 2. Copies; rows are named by their place in the dataset
        report["copies"], of_runs = find_copies(vectors, layout, runs)
        for entry in (report["copies"], *of_runs.values()):
            entry["duplicate_rows"] = [kept[rows].tolist() for rows in entry["duplicate_rows"]]
        for name, entry in of_runs.items():
            report["runs"][name] |= entry

        # What follows costs the square or the cube of their number.
        if len(kept) > MAX_ROWS:
            thinned = thin_out(runs, MAX_ROWS)
            kept, vectors = kept[thinned], vectors[thinned]
            own, runs = _by_run(kept, order)
        report["num_examined"] = len(kept)

        # 3. Geometry, in the space in which the default autoencoder works
        fit_begin = time.perf_counter()
        with torch.device("meta"):
            mode = DEFAULTS.build(layout.to_dict()).normalizer.mode
        normalizer = ParameterNormalizer(layout.num_parameters, mode, layout.to_dict()).to(float64_device(device))
        normalizer.fit(vectors)
        grams = gram_matrices(vectors, normalizer, column_kinds(layout, base_model))
        gram = grams.sum(0)
        pca_seconds = time.perf_counter() - fit_begin
        for name, rows in runs.items():
            # Of rows whose order is not known, there is no time to correlate along.
            report["runs"][name] |= {"effective_rows": None} if name in unordered else _memory(gram[rows][:, rows])
        numbers = torch.tensor([list(runs).index(name) for name in own])
        report["geometry"] = {
            "normalization": mode,
            **spectrum(gram),
            "effective_rows": None if unordered else sum(e["effective_rows"] for e in report["runs"].values()),
            "reconstruction": _reconstruction(gram, numbers, seed),
            "distances": nearest_distances(vectors, numbers, device),
        }

        report["gate"] = _gate(grams)
        report["gauge"] = gauge_figures(vectors, layout, dataset.metadata)

        # 4. What belongs together
        known = [rows.tolist() for run, rows in runs.items() if run not in unordered]
        ordered = [[(row, order.times[kept[row]][0]) for row in rows] for rows in known]
        report["families"] = _families(dataset, vectors, ordered, evaluator, kept, device)

        # 5. What the networks do
        if scorer is not None:
            report["score"] = score_figures(vectors, scorer, seed)
        if evaluator is not None:
            report["functional"] = functional_figures(vectors, numbers, known, evaluator, seed)

        # 6. What training would cost
        report["autoencoders"] = autoencoder_costs(vectors, layout, device, pca_seconds)
    report["advice"] = make_advice(report)
    report["seconds"] = time.perf_counter() - begin
    return report


def _by_run(kept: torch.Tensor, order: RowOrder) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Run of every kept row, and by run the rows, as places among those that are kept, in the order of their time."""
    rows = kept.tolist()
    return [order.runs[row] for row in rows], {name: torch.tensor(of) for name, of in order.by_run(rows).items()}


def _read(dataset: ParameterDataset) -> tuple[torch.Tensor, RowOrder]:
    """Vectors `(K, D)`, finite or not, and the order of the rows."""
    table = dataset.rows.with_format("arrow")[:]
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column("parameters").chunks]
    vectors = torch.from_numpy(np.concatenate(chunks).reshape(len(table), dataset.layout.num_parameters))
    return vectors, RowOrder.of_table(table, dataset.unordered_runs)


def _section(num_rows: int) -> AutoencoderConfig:
    """The default autoencoder as so many checkpoints need it."""
    return DEFAULTS if num_rows < MIN_ROWS else fit_to_rows(DEFAULTS, DENOISER.validate({}), num_rows)[0]


def _gate(grams: torch.Tensor) -> dict:
    """What the default autoencoder's gate is likely to say, by the shares that principal components explain.

    Of too few held-out rows it refuses nothing.
    """
    section = _section(grams.shape[1])
    expected = section.min_explained_variance
    train, heldout = split_rows(grams.shape[1], section.holdout_every)
    found = None
    if len(heldout) and len(train) > 1:
        found = linear_explained_by_kind(grams, train, heldout, section.num_latents)
    will_pass = None if found is None or len(heldout) < MIN_HELD_OUT else not poor_kinds(found, expected)
    unknown = dict.fromkeys(("explained_variance", "explained_by_kind"))
    return {"min_explained_variance": expected, **(found or unknown), "will_pass": will_pass}


def _families(
    dataset: ParameterDataset,
    vectors: torch.Tensor,
    times: list[list[tuple[int, float]]],
    evaluator: ParameterEvaluator | None,
    kept: torch.Tensor,
    device: torch.device,
) -> dict | None:
    """[`find_families`] with rows by their place in the dataset, and the tensors in which single rows are far off."""
    found = find_families(vectors, times, evaluator, device)
    if found is None:
        return None
    files = [entry.get("source") for entry in dataset.metadata.get("import", {}).get("rows", ())]
    tensors = {spec.name: slice(spec.offset, spec.offset + spec.numel) for spec in dataset.layout.tensors}
    rows, alone = [kept[rows].tolist() for rows in found["rows"]], kept[found["alone"]].tolist()
    return {
        **found,
        "rows": rows,
        "alone": alone,
        "tensors": [farthest_tensor(vectors, row, tensors) for row in found["alone"]],
        "files": [[files[of[0]], files[of[-1]]] for of in rows] if max(map(max, rows)) < len(files) else None,
    }


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
    section = _section(len(gram))
    latents = section.num_latents
    train, heldout = split_rows(len(gram), section.holdout_every)
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
