"""Parameter vectors of independent networks in a common order of their hidden units."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.matching import align, match
from ..evaluation.permutations import PermutationSpec, permutation_spec
from ..files import read_json
from .dataset import dataset_vectors, load_parameter_dataset, read_layout, save_parameter_dataset

# Every round brings the networks closer to their mean, so it ends; for 400 small perceptrons after some 40 rounds.
MAX_ROUNDS = 200


def align_networks(vectors: torch.Tensor, spec: PermutationSpec) -> tuple[torch.Tensor, dict[str, Any]]:
    """Permute the hidden units of networks so that they come close to each other, without changing what they compute.

    All are matched with the first one, then with the mean of all, until no unit changes its place. Matching by
    weights: Ainsworth et al. 2023, arXiv 2209.04836, §3.2; that the mean of all takes the place of one network is the
    simplest of their ways to merge many. How the units of a network are ordered before has no influence on the others,
    and for the first one none but on the order that all get.

    Args:
        vectors (`torch.Tensor` of shape `(K, D)`): Raw parameter values.
        spec ([`PermutationSpec`]): Of [`permutation_spec`].

    Returns:
        `tuple[torch.Tensor, dict]`: vectors `(K, D)`, each with the values of its row in another order, and how it
        went: `method`, `rounds`, `converged`, and the root of the mean squared distance to the mean in parameter
        units, `spread_before` and `spread_after`.

    Raises:
        ValueError: vectors of another length than the specification's.
    """
    aligned = align(vectors, vectors[0], spec)
    rounds, converged = 0, False
    while not converged and rounds < MAX_ROUNDS:
        moved = match(aligned, aligned.double().mean(0), spec)
        converged = torch.equal(moved, aligned)
        aligned, rounds = moved, rounds + 1
    report = {"method": "permutation", "rounds": rounds, "converged": converged}
    return aligned, report | {"spread_before": _spread(vectors), "spread_after": _spread(aligned)}


def align_dataset(
    dataset_dir: str | Path, output_dir: str | Path, trusted_imports: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a parameter dataset whose networks are those of another one, their hidden units in a common order.

    Metrics and all other columns stay, and `stats.json` says under `metadata.alignment` what was done.

    Args:
        dataset_dir (`str` or `Path`): Folder of a parameter dataset with a base model.
        output_dir (`str` or `Path`): New folder.
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].

    Returns:
        `dict`: the report of [`align_networks`], and `num_checkpoints` and `num_parameters`.

    Raises:
        ValueError: the dataset has no base model, its network has a layer that is not understood, or `output_dir` is
            not new.
    """
    layout, base_model = read_layout(dataset_dir)
    if base_model is None:
        raise ValueError(
            f"expected a base model in {Path(dataset_dir) / 'layout.json'}, found none; import it with one"
        )
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"expected a new folder for the aligned dataset, found that {output_dir} is not empty")
    spec = permutation_spec(base_model.build(trusted_imports), layout)
    dataset, layout = load_parameter_dataset(dataset_dir)
    aligned, report = align_networks(dataset_vectors(dataset, layout), spec)
    table = dataset.with_format("arrow")[:]
    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "parameters"}
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    metadata = {**read_json(Path(dataset_dir) / "stats.json")["metadata"], "alignment": report}
    save_parameter_dataset(aligned, layout, partial, base_model, columns, metadata)
    partial.rename(output_dir)
    return {**report, "num_checkpoints": len(aligned), "num_parameters": layout.num_parameters}


def _spread(vectors: torch.Tensor) -> float:
    mean = vectors.double().mean(0)
    return torch.stack([(row - mean).square().sum() for row in vectors]).mean().sqrt().item()
