"""Cards that say what an artefact is and what it is worth, rendered from `hub_cards/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..files import atomic_write, read_json


def write_pipeline_card(pipeline_dir: str | Path, metrics: Mapping | None = None) -> Path:
    """Write `README.md` of a pipeline folder.

    Args:
        pipeline_dir (`str` or `Path`): A saved [`PDiffPipeline`].
        metrics (`Mapping`, *optional*): Content of `metrics.json`; without it the card says "not evaluated".

    Returns:
        `Path`: the card.
    """
    pipeline_dir = Path(pipeline_dir)
    base_model = read_json(pipeline_dir / "model_index.json").get("base_model")
    layout = read_json(pipeline_dir / "autoencoder" / "config.json")["layout"]
    config = pipeline_dir / "train_config.json"
    name = "a network" if base_model is None else base_model["name"]
    card = ModelCard.from_template(
        ModelCardData(library_name="diffusers", tags=["pdiff-hf", "neural-network-diffusion"]),
        template_str=(resources.files("pdiff_hf") / "hub_cards" / "model_card.md").read_text(encoding="utf-8"),
        title=f"p-diff for {name}",
        base_model=name,
        num_parameters=f"{layout['num_parameters']:,}",
        results=None if metrics is None else _results(metrics),
        verdict=None if metrics is None else metrics["verdict"],
        num_test=None if metrics is None else f"{metrics['num_test']:,}",
        training=json.dumps(read_json(config), indent=2) if config.is_file() else "{}",
    )
    with atomic_write(pipeline_dir / "README.md") as temporary:
        temporary.write_text(card.content, encoding="utf-8")
    return pipeline_dir / "README.md"


def _results(metrics: Mapping) -> str:
    lines = [
        "| group | networks | mean accuracy, % | best on val, % | IoU | novel and performant |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, group in metrics["groups"].items():
        accuracy, selected = group["test_accuracy"], group["selected"]
        low, high = accuracy["ci95"]
        iou = group["similarity"]["iou_max_mean"]
        lines.append(
            f"| {name} | {group['n']} | {100 * accuracy['mean']:.2f} ({100 * low:.2f} to {100 * high:.2f}) "
            f"| {100 * selected['test_accuracy']:.2f} | {'-' if iou is None else f'{iou:.3f}'} "
            f"| {group['novel_and_performant']['joint']['1x']:.0%} |"
        )
    return "\n".join(lines)
