"""Text of cards: escaped, in blocks that are written anew while a person's edits around them are kept."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id, yaml_dump

from ..files import atomic_write, errors_of
from ..strict_yaml import parse_yaml

# Stands for the repository in snippets until a card is pushed.
REPO_ID = "REPO_ID"

BLOCK = re.compile(r"<!-- pdiff:begin ([\w-]+) -->.*?<!-- pdiff:end \1 -->", re.DOTALL)

# What `metrics.json` puts into a model-index; other results are a person's.
MEAN_METRIC = "mean test accuracy of the generated networks"
SELECTED_METRIC = "test accuracy of the generated network chosen on val"

# Metadata that are made anew. Of lists, what a person added stays; every other key is a person's once it is there.
OWN_KEYS = ("library_name", "base_model", "size_categories")
OWN_LISTS = ("tags", "datasets", "metrics")


def template(name: str) -> str:
    """The text of a template in `hub_cards/`."""
    return (resources.files("pdiff_hf") / "hub_cards" / name).read_text(encoding="utf-8")


def one_line(text: Any) -> str:
    """Text without line breaks and runs of spaces."""
    return " ".join(str(text).split())


def escape(text: Any) -> str:
    """Text of anybody as Markdown that shows just that: no markup, HTML, line break or further table column."""
    text = html.escape(one_line(text), quote=False)
    # An underscore within a word marks nothing up.
    return re.sub(r"[\\`*\[\]{}|#~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def code(text: Any) -> str:
    """A name as code, or escaped when it has characters that code cannot hold everywhere."""
    text = one_line(text)
    return f"`{text}`" if re.fullmatch(r"[^`<>|&\\]+", text) else escape(text)


def literal(value: Any, indent: int | None = None) -> str:
    """A value as JSON that is safe inside a fence and never looks like a mark of a block."""
    return json.dumps(value, indent=indent).replace("<", "\\u003c")


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], align: str = "--:") -> str:
    """A Markdown table of cells that are Markdown already; `align` is that of all columns but the first."""
    lines = [columns, ["---", *[align] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def fold(text: str, summary: str) -> str:
    """Markdown that is shown on a click."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def hub_id(name: str | None) -> str | None:
    """`name` if it can be a repository on the Hub, `None` if it is a folder here or no such name."""
    if name is None:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name


def update_card(existing: str, new: str) -> str:
    """Bring the card `existing` up to date with `new`, as it is rendered now, and keep what a person wrote.

    Text between `<!-- pdiff:begin NAME -->` and `<!-- pdiff:end NAME -->` is replaced by that of the new card, and so
    are our own metadata; what was deleted, marks or blocks, is not put back. A card without any block is a person's
    own and stays as it is; one of metadata alone gets the whole text.

    Raises:
        ValueError: the metadata of the existing card are malformed.
    """
    metadata, body = split_card(existing)
    new_metadata, new_body = split_card(new)
    if not body.strip():
        body = new_body
    elif BLOCK.search(body) is None:
        return existing
    else:
        if "\r\n" in body:
            new_body = new_body.replace("\n", "\r\n")
        blocks = {match[1]: match[0] for match in BLOCK.finditer(new_body)}
        body = BLOCK.sub(lambda match: blocks.get(match[1], match[0]), body)
    merged = _merge(metadata, new_metadata)
    if merged == metadata:
        # As it was typed, with comments.
        match = REGEX_YAML_BLOCK.search(existing)
        return (match[0] if match else "") + body
    line_break = "\r\n" if "\r\n" in body else "\n"
    text = yaml_dump(merged, sort_keys=False, line_break=line_break).strip()
    return line_break.join(["---", text, "---", body])


def write_card(path: Path, text: str) -> None:
    """Write a card; one that is there is brought up to date, see [`update_card`]."""
    if path.is_file():
        with errors_of(path):
            text = update_card(path.read_bytes().decode("utf-8"), text)
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """The metadata of a card, what is between its lines ---, and its text; malformed ones are a `ValueError`."""
    match = REGEX_YAML_BLOCK.search(text)
    if match is None:
        return {}, text
    metadata = parse_yaml(match[2], "what is between the lines --- of a card")
    if not isinstance(metadata, dict | None):
        raise ValueError(f"expected keys and values between the lines ---, found {type(metadata).__name__}.")
    return metadata or {}, text[match.end() :]


def _merge(existing: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**new, **existing, **{name: new[name] for name in OWN_KEYS if name in new}}
    for name in OWN_LISTS:
        if name in new:
            known = _as_list(existing.get(name))
            merged[name] = [*known, *(value for value in new[name] if value not in known)]
    if "configs" in new:
        own = {config["config_name"] for config in new["configs"]}
        try:
            others = [config for config in _as_list(existing.get("configs")) if config["config_name"] not in own]
        except (KeyError, TypeError) as error:
            raise ValueError("expected configs with a config_name each; correct them.") from error
        merged["configs"] = [*others, *new["configs"]]
    results = [*_other_results(existing.get("model-index")), *_as_list(new.get("model-index"))]
    merged.pop("model-index", None)
    if results:
        # One model with the results of all, as the card classes read the first model only.
        name = results[-1]["name"]
        merged["model-index"] = [{"name": name, "results": [r for model in results for r in model["results"]]}]
    # In the order of the existing card.
    return {name: merged[name] for name in [*(n for n in existing if n in merged), *merged]}


def _other_results(model_index: Any) -> list[dict[str, Any]]:
    """A model-index without our metrics."""
    found = []
    try:
        for model in _as_list(model_index):
            results = []
            for result in model["results"]:
                metrics = [m for m in result["metrics"] if m.get("name") not in (MEAN_METRIC, SELECTED_METRIC)]
                if metrics:
                    results.append({**result, "metrics": metrics})
            if results:
                found.append({"name": model["name"], "results": results})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("expected a model-index of models with name, results and metrics; correct it.") from error
    return found


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]
