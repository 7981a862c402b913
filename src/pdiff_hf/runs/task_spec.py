"""What networks are judged by, as a user types it: a data set's name, a function, a YAML file or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel as PydanticModel

from ..files import errors_of, parse_json
from ..own_code import is_file_reference
from ..sections import OneOf, by_kind
from ..strict_yaml import read_mapping
from ..tasks.auto import TASKS
from ..tasks.config import FunctionConfig, SplitConfig
from ..wording import argument
from .composition import facts_of, resolve
from .recipe_parts import find_part, part_names
from .validation import parse_config

if TYPE_CHECKING:
    from ..base_model import BaseModel
    from ..layout import ParameterLayout

IMPORT = "import:"
# Of a shipped text data set, what belongs to the networks of the recipes and to no other's.
OF_RECIPES = ("tokenizer", "vocab_size", "max_length")


class _Given(PydanticModel):
    task: Annotated[PydanticModel, OneOf(by_kind(*TASKS, FunctionConfig), "image_classification")]


def parse_task(text: str) -> SplitConfig | FunctionConfig:
    """The configuration that a user names.

    Args:
        text (`str`): The name of a shipped data set (`cifar10`); a function, `FILE.py:NAME` or
            `import:package.module:NAME`; a YAML or JSON file; or JSON. Files and JSON hold the keys of a recipe's
            `task` section, or `{"kind": "function", "function": …}`; with `data`, the name of a shipped data set, the
            others stand in place of that one's.

    Raises:
        ValueError: it is none of these, or a key or value is wrong.
    """
    if text.startswith(IMPORT) or is_file_reference(text):
        return FunctionConfig(function=text.removeprefix(IMPORT))
    with errors_of(f"{argument('task')} {text}"):
        if text.lstrip().startswith("{"):
            values = parse_json(text)
        elif Path(text).suffix in (".yaml", ".yml", ".json"):
            values = read_mapping(text)
            # A recipe has a section of this name.
            values = values.get("task", values)
        elif text in part_names("data set"):
            values = {"data": text}
        else:
            raise ValueError(
                f"expected the name of a data set ({', '.join(part_names('data set'))}), a function "
                "(nets.py:evaluate, import:package.module:evaluate), a YAML file, or JSON such as "
                '{"dataset": "…", "image_size": 32}'
            )
        return parse_config(_Given, {"task": _complete(values)}).task


def _complete(values: Any) -> Any:
    """Values with those of the data set that they name."""
    if not isinstance(values, Mapping) or "data" not in values:
        return values
    part = read_mapping(find_part(values["data"], "data set"))
    known = resolve(part, facts_of(part))["task"]
    if known.get("kind") == "text_classification":
        known = {key: value for key, value in known.items() if key not in OF_RECIPES}
    return {**known, **{key: value for key, value in values.items() if key != "data"}}


def task_describer(
    given: SplitConfig | FunctionConfig, report: Callable[[str], None]
) -> Callable[[BaseModel, ParameterLayout], dict[str, Any]]:
    """What [`import_checkpoints`] stores of a task: its configuration with nothing left open.

    Of the network with the first checkpoint's weights a line is reported: what it is judged by, and what it is worth.
    """
    # Here, because whoever only reads what was typed would wait for the libraries of data sets.
    from ..tasks.evaluators import judge_networks, load_given_task
    from ..trust import remember

    def describe(base_model: BaseModel, layout: ParameterLayout) -> dict[str, Any]:
        task, model = load_given_task(given, base_model), base_model.build()
        evaluator = judge_networks(task, "val", model, layout)
        value = evaluator.metric.write(evaluator.score(layout.flatten(model)[None]).item())
        described = task.describe()
        how = described.get("function") or f"{evaluator.num_examples:,} val examples of {described['dataset']}"
        if isinstance(given, FunctionConfig):
            remember(given.function, {})
        report(f"Judged by {evaluator.metric.title}, {how}: {value} for the first checkpoint.")
        return task.config.model_dump(mode="json")

    return describe
