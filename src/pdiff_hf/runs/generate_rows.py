"""Many networks as rows of a parameter dataset, drawn and written batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..conditions import ConditionSpec
from ..data.writer import stream_parameter_dataset
from ..files import check_new, errors_of
from ..machine import precision_of
from ..pipelines.conditioning import Conditions, prepare_guidance
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..pipelines.sampling import BATCH, BATCH_BYTES, batch_seed, make_scheduler
from ..wording import argument

RUN = "generated"


@precision_of("evaluation")
def generate_rows(
    pipeline: PDiffPipeline,
    output_dir: str | Path,
    num_samples: int = 100,
    num_inference_steps: int = 20,
    scheduler: str = "dpmsolver++",
    truncation: float = 1.0,
    seed: int = 0,
    *,
    condition: Conditions | None = None,
    guidance_scale: float = 1.0,
) -> Path:
    """Generate networks into a new parameter dataset, which appears when it is complete; memory does not grow.

    They are the networks that [`generate_networks`] writes as files. Their conditions are a column, so every row has
    a whole one; the dataset has no metrics, and `metadata.generated` says how it was drawn. One process draws.

    Arguments are those of [`generate_networks`].

    Raises:
        ValueError: the folder is not empty, an option is invalid, or a condition leaves something open.
    """
    output_dir = Path(output_dir)
    check_new(output_dir, "the networks")
    drawing = make_scheduler(scheduler, pipeline.scheduler, num_inference_steps)
    if num_samples < 1:
        raise ValueError(f"{argument('num_samples')} must be at least 1, got {num_samples}.")
    encoder = pipeline.condition_encoder
    guidance = prepare_guidance(encoder, num_samples, condition=condition, guidance_scale=guidance_scale)
    spec = None if encoder is None or condition is None else encoder.spec
    stored = None if spec is None else _stored(spec, condition)
    pipeline.scheduler = drawing
    batch = max(1, min(BATCH, BATCH_BYTES // (4 * pipeline.layout.num_parameters)))

    def batches() -> Iterator[tuple[torch.Tensor, Mapping[str, Sequence[Any]]]]:
        for number, rows in enumerate(torch.arange(num_samples).split(batch)):
            vectors = pipeline(
                batch_size=len(rows),
                num_inference_steps=num_inference_steps,
                generator=torch.Generator().manual_seed(batch_seed(seed, number)),
                truncation=truncation,
                output_type="pt",
                condition_embeds=guidance.rows(rows).embeds,
                guidance_scale=guidance.scale,
            ).parameters
            columns: dict[str, Any] = {"run": [RUN] * len(rows), "seed": [seed] * len(rows), "step": rows.tolist()}
            if stored is not None:
                columns["condition"] = stored[rows] if len(stored) > 1 else stored.expand(len(rows), -1)
            yield vectors, columns

    way = {"scheduler": scheduler, "num_inference_steps": num_inference_steps, "truncation": truncation, "seed": seed}
    if encoder is not None:
        way["guidance_scale"] = guidance_scale
    given = pipeline.layout, output_dir, pipeline.base_model, {"generated": way}
    stream_parameter_dataset(batches(), *given, conditions=spec)
    return output_dir


def _stored(spec: ConditionSpec, condition: Conditions) -> torch.Tensor:
    """Conditions as a dataset has them `(1 or n, size)`."""
    given = condition if isinstance(condition, (list, tuple)) else [condition]
    values = []
    for number, one in enumerate(given):
        with errors_of(f"condition {number + 1} of {len(given)}"):
            values.append(spec.values(one if spec.parts else one[spec.kind]))
    return torch.tensor(values)
