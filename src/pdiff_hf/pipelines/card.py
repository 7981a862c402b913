"""The card of a pipeline: how to use it, what it is worth, how it was made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..files import read_json
from ..hub.card_text import REPO_ID, code, escape, fold, literal, one_line, template, write_card
from ..models.condition_encoder import ConditionEncoder
from ..results import card_lines
from ..results.metrics import METRICS_FILE, Metrics, read_denoiser
from ..results.population_table import population_lines
from ..results.records import Denoiser

TAGS = ["pdiff-hf", "neural-network-diffusion"]

# Figures of a report and what they show; the first is shown at once.
PLOTS = {
    "unseen_tasks": "Accuracy on tasks that nobody trained, generated networks beside other ways",
    "task_by_task": "Generated networks against networks trained on the task, one mark per unseen task",
    "accuracy_similarity": "Test accuracy against similarity to the nearest original, one point per network",
    "accuracy_histograms": "Histograms of what the networks of every group are worth",
    "latent_pca": "Latents of originals, averages and generated networks, on two principal axes",
    "iou_matrix": "IoU of wrong predictions between networks",
    "ensembles": "Accuracy of ensembles by their size",
    "loss_curves": "Losses of the training stages",
}


def write_pipeline_card(
    pipeline_dir: str | Path, metrics: Metrics | None = None, report_dir: str | Path | None = None
) -> Path:
    """Write `README.md` of a pipeline folder; what a person wrote into an earlier one is kept, see [`update_card`].

    Without `metrics` the card says "not evaluated"; of the report that they are from, `metrics.json` and figures are
    copied beside the card, which shows the figures that are there.

    Raises:
        ValueError: the folder is no pipeline, or the metadata of the card that is there are malformed.
    """
    pipeline_dir = Path(pipeline_dir)
    index = read_json(pipeline_dir / "model_index.json")
    autoencoder = read_json(pipeline_dir / "autoencoder" / "config.json")
    if report_dir is not None:
        for file in [Path(report_dir) / METRICS_FILE, *(Path(report_dir) / f"{name}.png" for name in PLOTS)]:
            if file.is_file():
                shutil.copyfile(file, pipeline_dir / file.name)
    is_evaluated = metrics is not None
    metrics = metrics or Metrics()
    base_model = index.get("base_model")
    config_file = pipeline_dir / "train_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    plots = [name for name in PLOTS if (pipeline_dir / f"{name}.png").is_file()]
    encoder_dir = pipeline_dir / "condition_encoder"
    encoder = ConditionEncoder.from_pretrained(encoder_dir) if encoder_dir.is_dir() else None
    _, dataset = card_lines.task_dataset(metrics.task)
    text = render_card(
        "model_card.md",
        f"p-diff for {card_lines.short_name(base_model)}",
        base_model,
        autoencoder["layout"],
        metrics,
        card_lines.generated_values(metrics),
        {"library_name": "diffusers", "datasets": None if dataset is None else [dataset]},
        repo_id=REPO_ID,
        condition=_condition_argument(encoder),
        build_arguments=card_lines.build_arguments(base_model) if base_model else None,
        has_tasks=metrics.tasks is not None,
        verdict=escape(metrics.verdict) if is_evaluated else None,
        results=card_lines.results_table(metrics) if is_evaluated else None,
        num_test=f"{metrics.num_test:,}" if is_evaluated else None,
        intervals=metrics.intervals,
        ensembles=card_lines.ensemble_line(metrics),
        first_plot=_plot(plots[0]) if plots else None,
        other_plots=fold("\n\n".join(map(_plot, plots[1:])), "More figures") if plots[1:] else None,
        making=_making_lines(index, autoencoder, metrics, read_denoiser(pipeline_dir), encoder),
        config=fold(f"```json\n{literal(config, indent=2)}\n```", "Training configuration") if config else None,
        task_kind=escape(one_line(metrics.task.get("kind") or "image classification").replace("_", " ")),
    )
    write_card(pipeline_dir / "README.md", text)
    return pipeline_dir / "README.md"


def render_card(
    template_name: str,
    title: str,
    base_model: Mapping | None,
    layout: Mapping,
    metrics: Metrics,
    values: Mapping[str, tuple[float | None, Any]],
    data: Mapping[str, Any],
    **options,
) -> str:
    """The text of a card of generated networks or of what generates them.

    `values` are the accuracies of [`eval_results`], `data` further metadata, and `options` are the template's.
    """
    results = card_lines.eval_results(metrics, values)
    metadata = ModelCardData(
        **{
            "tags": TAGS,
            "base_model": card_lines.base_model_id(base_model),
            "metrics": ["accuracy"] if results else None,
            "model_name": title if results else None,
            "eval_results": results or None,
            **data,
        }
    )
    card = ModelCard.from_template(
        metadata,
        template_str=template(template_name),
        title=escape(title),
        base_text=card_lines.base_model_text(base_model),
        num_parameters=f"{layout['num_parameters']:,}",
        tensors=card_lines.tensors_text(layout),
        comparisons=card_lines.comparison_lines(metrics),
        novelty=card_lines.novelty_lines(metrics),
        population=population_lines(metrics),
        metric=escape(metrics.metric.title),
        is_accuracy=metrics.metric.is_accuracy,
        **options,
    )
    return f"{card.content}\n"


def _plot(name: str) -> str:
    return f"![{PLOTS[name]}]({name}.png)"


def _condition_argument(encoder: ConditionEncoder | None) -> str:
    """What a call has to be given of a condition, as Python, in front of other arguments."""
    if encoder is None:
        return ""
    if (example := encoder.example()) is not None:
        return f"condition={literal(example)}, "
    return f"condition_embeds=torch.zeros(1, {encoder.embed_size}), "


def _making_lines(
    index: Mapping, autoencoder: Mapping, metrics: Metrics, denoiser: Denoiser, encoder: ConditionEncoder | None
) -> list[str]:
    base_model = index.get("base_model")
    lines = [f"Base model: {card_lines.base_model_text(base_model)}"]
    if repo := card_lines.base_model_id(base_model):
        lines[0] += f", weights of [{escape(repo)}](https://huggingface.co/{repo})"
        lines[0] += f" at {code(base_model['revision'])}" if base_model.get("revision") else ""
    lines += card_lines.task_lines(metrics.task)
    if metrics.original.n is not None:
        lines.append(f"Originals: {metrics.original.n:g} checkpoints of that network")
    latents = f"{autoencoder['latent_channels']}×{autoencoder['latent_length']}"
    lines.append(f"Autoencoder: {code(autoencoder['_class_name'])}, latents {latents}")
    lines.append(f"Denoiser: {code(index['unet'][1])}, noise schedule of {code(index['scheduler'][1])}")
    if denoiser.kept_step is not None:
        lines[-1] += f"; {denoiser.describe()}"
    if encoder is not None:
        lines.append(f"Conditions: {escape(encoder.spec.summary)}; with guidance_scale=0, none")
    if metrics.generated.cost.seconds is not None:
        lines.append(f"Autoencoder, denoiser and drawing together took {metrics.generated.cost.seconds:.3g} s")
    lines += card_lines.seed_lines(metrics)
    if metrics.versions:
        lines.append(f"Versions: {', '.join(f'{escape(k)} {escape(v)}' for k, v in metrics.versions.items())}")
    return lines
