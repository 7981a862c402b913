"""The card of generated networks: one of them as an ordinary model, or all of them as files."""

from __future__ import annotations

from collections.abc import Mapping

from ..base_model import BaseModel
from ..hub.card_text import MEAN_METRIC, SELECTED_METRIC, escape, fold, hub_id, literal
from ..layout import ParameterLayout
from ..results.card_lines import build_arguments, generated_values, short_name, task_lines
from ..results.metric import Metric
from ..results.metrics import Metrics
from .adapter_card import adapter_snippet, base_repo, loading_lines
from .card import render_card

SNIPPETS = {
    "timm": 'import timm\n\nmodel = timm.create_model("hf_hub:{repo_id}", pretrained=True)',
    "transformers": 'from transformers import {name}\n\nmodel = {name}.from_pretrained("{repo_id}")',
    "import": (
        "from huggingface_hub import snapshot_download\nfrom pdiff_hf import load_base_model\n\n"
        'model = load_base_model(snapshot_download("{repo_id}")).build({arguments})'
    ),
    "zoo": (
        "from huggingface_hub import snapshot_download\nfrom pdiff_hf import load_generated, read_layout\n\n"
        'folder = snapshot_download("{repo_id}")\nlayout, base_model = read_layout(folder)\n'
        "model = base_model.build({arguments})\nlayout.load_into(model, load_generated(folder, layout)[0])"
    ),
}


# Of `index.json`, what says nothing of how the networks were drawn.
NOT_SHOWN = ("files", "choice", "schema", "base_model", "rest", "pipeline")


def make_generated_card(
    repo_id: str,
    index: Mapping,
    layout: ParameterLayout,
    base_model: BaseModel,
    row: int | None = None,
    pipeline: str | None = None,
    metrics: Metrics | None = None,
) -> str:
    """The text of `README.md` of generated networks on the Hub.

    `index` is the `index.json` of their folder, `row` the position of the one that is shared in `index["files"]`, or
    all are. The `pipeline` that they are from is named when it is on the Hub, and `metrics` are of that folder.
    """
    reference = base_model.to_dict()
    arguments = build_arguments(reference)
    kind = "zoo" if row is None else base_model.library
    name, num = short_name(reference), len(index["files"])
    is_evaluated = metrics is not None
    metrics = metrics or Metrics()
    values = generated_values(metrics)
    if row is None:
        values.pop(SELECTED_METRIC)
    else:
        values.pop(MEAN_METRIC)
        if metrics.generated.selected.index != row:
            values.clear()
    data = {
        "library_name": kind if kind in ("timm", "transformers") else "pdiff-hf",
        "pipeline_tag": "image-classification" if kind == "timm" else None,
    }
    is_adapter = base_model.adapter is not None
    if is_adapter:
        name = f"adapter of {name}"
        # A pipeline tag would have the Hub run it without its base.
        data = {"library_name": "peft", "base_model": base_repo(base_model)}
    if is_adapter and row is not None:
        snippet = adapter_snippet(base_model, repo_id)
    else:
        snippet = SNIPPETS[kind].format(repo_id=repo_id, name=base_model.name, arguments=arguments)
    settings = {key: value for key, value in index.items() if key not in NOT_SHOWN}
    return render_card(
        "generated_card.md",
        f"{num} generated networks: {name}" if row is None else f"A generated {name}",
        reference,
        layout.to_dict(),
        metrics,
        values,
        data,
        is_zoo=row is None,
        pipeline=hub_id(pipeline) if pipeline else None,
        snippet=snippet,
        loading=loading_lines(base_model, layout) if is_adapter else [],
        choice=_choice_text(index, row),
        verdict=escape(metrics.verdict) if is_evaluated else None,
        results=_result_lines(metrics, row),
        task=task_lines(metrics.task),
        settings=fold(f"```json\n{literal(settings, indent=2)}\n```", "Settings"),
    )


def _choice_text(index: Mapping, row: int | None) -> str:
    found = index.get("choice") or {}
    metric = Metric.parse(found.get("metric", {}), "index.json")
    name = escape(metric.name)
    where = f" on {found['num_val']:,} validation examples" if metric.is_accuracy and found else ""
    if row is None and not found:
        return "All networks are here; none was chosen."
    if row is None:
        return f"The best of {found['num_drawn']:,} networks by {name}{where}."
    if not found:
        return f"Its row was named; it was not chosen by its {name}."
    value = f"{found['val_accuracy'][row]:.2%}" if metric.is_accuracy else metric.write(found["val_score"][row])
    return (
        f"It is number {row + 1} of {found['num_drawn']:,} networks by {name}{where}, where it has {value}; that is "
        "optimistic, as it was chosen there."
    )


def _result_lines(metrics: Metrics, row: int | None) -> list[str]:
    if "generated" not in metrics.groups:
        return []
    lines = []
    if row is not None:
        chosen = metrics.generated.selected
        own = metrics.metric.write(chosen.score, chosen.test_ci95)
        lines.append(f"This network: {own}" if chosen.index == row else "This network alone: not reported")
    for name, text in (("generated", "generated networks"), ("original", "originals")):
        if name in metrics.groups:
            group = metrics.groups[name]
            score = metrics.metric.write(group.score.mean, group.score.ci95)
            lines.append(f"Mean over {group.n:g} {text}: {score}")
    return lines
