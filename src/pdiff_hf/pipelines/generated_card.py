"""The card of generated networks: one of them as an ordinary model, or all of them as files."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import ModelCard, ModelCardData

from ..base_model import BaseModel
from ..hub.card_text import MEAN_METRIC, SELECTED_METRIC, escape, fold, hub_id, literal, template
from ..layout import ParameterLayout
from ..results.card_lines import (
    base_model_id,
    base_model_text,
    build_arguments,
    comparison_lines,
    eval_results,
    generated_values,
    novelty_lines,
    short_name,
    task_lines,
    tensors_text,
)
from ..results.metrics import Metrics
from ..results.text import percent
from .card import TAGS

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


def make_generated_card(
    repo_id: str,
    index: Mapping,
    layout: ParameterLayout,
    base_model: BaseModel,
    row: int | None = None,
    pipeline: str | None = None,
    metrics: Metrics | None = None,
) -> str:
    """Make the text of `README.md` of generated networks on the Hub.

    Args:
        repo_id (`str`): `user/name`.
        index (`Mapping`): Content of `index.json` of the folder they were generated into.
        layout ([`ParameterLayout`]): The generated tensors.
        base_model ([`BaseModel`]): The network they belong to.
        row (`int`, *optional*): The one network that is shared, as a position in `index["files"]`; all by default.
        pipeline (`str`, *optional*): The pipeline they are from; named when it is on the Hub.
        metrics ([`Metrics`], *optional*): What an evaluation of that folder has found.
    """
    reference = base_model.to_dict()
    arguments = build_arguments(reference)
    kind = "zoo" if row is None else base_model.library
    snippet = SNIPPETS[kind].format(repo_id=repo_id, name=base_model.name, arguments=arguments)
    num = len(index["files"])
    name = short_name(reference)
    title = f"{num} generated networks: {name}" if row is None else f"A generated {name}"
    is_evaluated = metrics is not None
    metrics = metrics or Metrics()
    values = generated_values(metrics)
    if row is None:
        values.pop(SELECTED_METRIC)
    else:
        values.pop(MEAN_METRIC)
        if metrics.generated.selected.index != row:
            values.clear()
    results = eval_results(metrics, values)
    data = ModelCardData(
        library_name=kind if kind in ("timm", "transformers") else "pdiff-hf",
        pipeline_tag="image-classification" if kind == "timm" else None,
        tags=TAGS,
        base_model=base_model_id(reference),
        metrics=["accuracy"] if results else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    settings = {key: value for key, value in index.items() if key not in ("files", "choice", "schema")}
    card = ModelCard.from_template(
        data,
        template_str=template("generated_card.md"),
        title=escape(title),
        is_zoo=row is None,
        base_text=base_model_text(reference),
        num_parameters=f"{layout.num_parameters:,}",
        tensors=tensors_text(layout.to_dict()),
        pipeline=hub_id(pipeline) if pipeline else None,
        snippet=snippet,
        choice=_choice_text(index, row),
        verdict=escape(metrics.verdict) if is_evaluated else None,
        results=_result_lines(metrics, row),
        novelty=novelty_lines(metrics),
        comparisons=comparison_lines(metrics),
        task=task_lines(metrics.task),
        settings=fold(f"```json\n{literal(settings, indent=2)}\n```", "Settings"),
    )
    return f"{card.content}\n"


def _choice_text(index: Mapping, row: int | None) -> str:
    found = index.get("choice")
    if row is None and not found:
        return "All networks are here; none was chosen."
    if row is None:
        return f"The best of {found['num_drawn']:,} networks by accuracy on {found['num_val']:,} validation examples."
    if not found:
        return "Its row was named; it was not chosen by its accuracy."
    return (
        f"It is number {row + 1} of {found['num_drawn']:,} networks by accuracy on {found['num_val']:,} validation "
        f"examples, where it has {found['val_accuracy'][row]:.2%}; that is optimistic, as it was chosen there."
    )


def _result_lines(metrics: Metrics, row: int | None) -> list[str]:
    if "generated" not in metrics.groups:
        return []
    lines = []
    if row is not None:
        chosen = metrics.generated.selected
        own = percent(chosen.test_accuracy, chosen.test_ci95)
        lines.append(f"This network: {own}" if chosen.index == row else "This network alone: not reported")
    for name, text in (("generated", "generated networks"), ("original", "originals")):
        if name in metrics.groups:
            group = metrics.groups[name]
            accuracy = percent(group.test_accuracy.mean, group.test_accuracy.ci95)
            lines.append(f"Mean over {group.n:g} {text}: {accuracy}")
    return lines
