"""What a denoiser learns of rows that were kept from it on purpose: a block, the end, another run.

The rows between neighbours, which the gate holds out, are kept from the pipeline's own denoiser; for each of these
kinds another one is trained as it was, without the rows in question. Its step is chosen by rows of the same kind,
`block` and `run`; by those of the pipeline's own for the `end`, of which nothing in the past tells. The autoencoder
has seen them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.dataset import ParameterDataset
from ..files import read_object
from ..models.auto import DENOISER
from ..models.autoencoder_base import ParameterAutoencoderMixin
from ..models.condition_encoder import ConditionEncoder
from ..models.config import DiffusionConfig
from ..models.partial_conditions import PartialConditions
from ..results.records import HeldOut
from ..training.denoiser import as_denoiser, take, train_denoiser
from ..training.loop import make_accelerator
from ..training.losses import compare_with_gaussians
from ..training.rows import condition_units, hold_out
from .validation import parse_section

# Of the rows of a run; of runs, it is one.
SHARE = 0.1
# Shorter runs have no middle and no end to speak of.
MIN_ROWS = 40


def held_out_of(
    pipeline_dir: Path,
    dataset: ParameterDataset,
    autoencoder: ParameterAutoencoderMixin,
    originals: torch.Tensor,
    wanted: Collection[str],
) -> dict[str, HeldOut]:
    """[`measure_held_out`] of the `wanted` kinds that a dataset allows, for a denoiser that contains a Gaussian.

    Args:
        pipeline_dir (`Path`): What [`train_diffusion`] has written; one that does not say how it was trained is left
            out.
        autoencoder ([`ParameterAutoencoderMixin`]): Of the pipeline.
        originals (`torch.Tensor` of shape `(K, D)`): All rows.

    Raises:
        ValueError: the pipeline's `train_config.json` is damaged.
    """
    path = pipeline_dir / "train_config.json"
    section = read_object(path, diffusion=dict).get("diffusion") if path.is_file() else None
    if section is None:
        return {}
    config, order = parse_section(DENOISER, section), dataset.order
    runs = order.by_run()
    kinds = [kind for kind in kinds_allowed(runs, order.unordered) if kind in wanted]
    if not config.contains_gaussian or not kinds:
        return {}
    latents = autoencoder.scale_latents(autoencoder.encode_rows(originals))
    conditions = units = partial = None
    if config.uses_conditions(dataset.condition_spec):
        encoder = ConditionEncoder.from_pretrained(pipeline_dir / "condition_encoder")
        conditions, partial = encoder(dataset.conditions()), encoder.partial
        units = condition_units(conditions, encoder.spec)
    found = measure_held_out(latents, runs, kinds, config, conditions, units, partial)
    return {kind: HeldOut.model_validate(losses) for kind, losses in found.items()}


def kinds_allowed(runs: Mapping[str, Sequence[int]], unordered: frozenset[str] = frozenset()) -> list[str]:
    """Kinds of held-out rows that a collection allows, beside those between neighbours.

    Args:
        runs (`Mapping[str, Sequence[int]]`): By run the rows, in the order of their time.
        unordered (`frozenset[str]`, *optional*): Runs of which the order is not known.
    """
    kinds = []
    if all(len(rows) >= MIN_ROWS for rows in runs.values()) and not unordered & runs.keys():
        kinds += ["block", "end"]
    # Where each row is a run of its own, those between neighbours are such.
    if len(runs) > 1 and all(len(rows) > 1 for rows in runs.values()):
        kinds.append("run")
    return kinds


def measure_held_out(
    latents: torch.Tensor,
    runs: Mapping[str, Sequence[int]],
    kinds: Sequence[str],
    config: DiffusionConfig,
    conditions: torch.Tensor | None = None,
    units: torch.Tensor | None = None,
    partial: PartialConditions | None = None,
) -> dict[str, dict[str, Any]]:
    """What [`compare_with_gaussians`] finds of a denoiser that was trained without rows of a kind, by kind.

    All processes of `accelerate launch` have to call.

    Args:
        latents (`torch.Tensor` of shape `(K, C, L)`): Scaled, of all rows.
        runs (`Mapping[str, Sequence[int]]`): By run the rows, in the order of their time.
        kinds (`Sequence[str]`): Of [`kinds_allowed`]; left out is one without enough rows for the latents.
        config ([`DiffusionConfig`]): Of the pipeline's denoiser.
        conditions (`torch.Tensor` of shape `(K, n)`, *optional*): Class labels of the rows.
        units (`torch.Tensor` of shape `(K,)`, *optional*): Of [`condition_units`].
        partial ([`PartialConditions`], *optional*): How something of them is left open while training.
    """
    found = {}
    for kind in kinds:
        share = 1 / len(runs) if kind == "run" else SHARE
        train, held = hold_out(kind, runs, share, config.seed)
        place = {row: index for index, row in enumerate(train.tolist())}
        left = {run: [place[row] for row in rows if row in place] for run, rows in runs.items()}
        left = {run: rows for run, rows in left.items() if rows}
        validate = config.validate if kind == "end" else kind
        if validate == "run" and len(left) < 2:
            validate = "block"
        # Nothing is saved: there is nothing to go on with.
        own = config.model_copy(update={"validate": validate, "checkpointing_steps": config.steps + 1})
        if latents[0].numel() > own.most_latents(len(train)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            accelerator = make_accelerator(own, folder)
            rows = latents[train.to(latents.device)].to(accelerator.device)
            labels = None if conditions is None else conditions.to(accelerator.device)
            denoiser, scheduler, record, _ = train_denoiser(
                accelerator,
                rows,
                left,
                own,
                Path(folder),
                description=f"without {kind}",
                conditions=take(labels, train),
                units=take(units, train),
                partial=partial,
            )
            held_rows = latents[held.to(latents.device)].to(accelerator.device)
            losses = compare_with_gaussians(as_denoiser(denoiser, take(labels, held)), rows, held_rows, scheduler)
        found[kind] = {**losses, "kept_step": record["kept_step"]}
    return found
