"""What the card of a generated adapter says of how it is loaded, and of its base."""

from __future__ import annotations

from ..adapters.folder import ways_to_load
from ..base_model import BaseModel
from ..hub.card_text import code, hub_id, literal
from ..layout import ParameterLayout


def base_name(base_model: BaseModel) -> str | None:
    """How adapters call their base: as peft wrote it, or as the base was given."""
    return (base_model.adapter or {}).get("base_model_name_or_path")


def base_repo(base_model: BaseModel) -> str | None:
    """The base on the Hub, as far as its name says."""
    name = base_name(base_model)
    return hub_id(name) if name is not None and "/" in name else None


def adapter_snippet(base_model: BaseModel, repo_id: str) -> str:
    """Python that loads an adapter with its base's library and peft alone."""
    name = base_name(base_model) or "BASE"
    if base_model.library == "timm":
        arguments = {k: v for k, v in base_model.kwargs.items() if k != "pretrained"}
        given = "".join(f", {key}={literal(value)}" for key, value in arguments.items())
        load = f"import timm\n\nbase = timm.create_model({literal(base_model.name)}, pretrained=True{given})"
    elif base_model.library == "transformers":
        labels = base_model.kwargs["config"].get("num_labels")
        labels = labels or len(base_model.kwargs["config"].get("id2label") or ()) or None
        given = f", num_labels={labels}" if labels and "Classification" in base_model.name else ""
        load = (
            f"from transformers import {base_model.name}\n\n"
            f"base = {base_model.name}.from_pretrained({literal(name)}{given})"
        )
    else:
        load = f"base = ...  # the network {base_model.name}"
    return f'from peft import PeftModel\n{load}\nmodel = PeftModel.from_pretrained(base, "{repo_id}").eval()'


def loading_lines(base_model: BaseModel, layout: ParameterLayout) -> list[str]:
    """Which functions load it, which do not, and that the base has to be the right one."""
    ways = ways_to_load(base_model.adapter, layout)
    taken = ", ".join(code(name) for name, takes in ways.items() if takes)
    refused = ", ".join(code(name) for name, takes in ways.items() if not takes)
    name = base_name(base_model)
    called = f"called {code(name)}" if name else "without a name"
    lines = [f"Loaded by {taken}" + (f"; not by {refused}" if refused else "")]
    lines.append(
        f"The base is {code(base_model.name)} of {base_model.library}, {called}; nothing in an adapter says which "
        "weights it is for, and on others it computes something else"
    )
    if any(".modules_to_save." in tensor for tensor in layout.names):
        lines.append("It has a head of its own, which servers that load LoRA alone refuse or leave out")
    return lines
