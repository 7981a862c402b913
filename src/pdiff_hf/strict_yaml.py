"""YAML in which nothing is lost in silence: keys are unique, and neither tags nor aliases do what nobody sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from .files import check_regular, errors_of

# Aliases make a small text as large as one likes; no recipe and no card comes near.
MAX_NODES = 100_000
MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        ValueError: it is missing, may not be read, or is not valid, see [`parse_yaml`].
    """
    if os.path.lexists(path):
        check_regular(path, "a YAML file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"expected a YAML file, found that {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: expected UTF-8, found {error}; save it as UTF-8.") from error
    return parse_yaml(text, path)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values; raises as [`read_yaml`], and for anything else in it."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        found = "an empty file" if values is None else f"{values!r:.200}"
        raise ValueError(f"{path}: expected sections such as 'task' and 'collect', found {found}.")
    return values


def parse_yaml(text: str, name: Any) -> Any:
    """The value of a YAML text of one document.

    Args:
        text (`str`): Tags beyond those of YAML itself are refused.
        name: What the text is called in errors: a file, or an option.

    Raises:
        ValueError: the text is not valid YAML, or has a key twice in one mapping; names both lines.
    """
    with errors_of(f"{name} is not valid YAML", yaml.YAMLError, RecursionError, OverflowError):
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, loader)
            return loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
            raise ValueError(f"{where}{' '.join(filter(None, (error.context, error.problem)))}") from error
        finally:
            loader.dispose()


def _count(node: yaml.Node, counts: dict[yaml.Node, int | None], loader: yaml.SafeLoader) -> int:
    """Number of nodes below and with this one, those of aliases wherever they are; checks keys on the way."""
    if node in counts:
        if (known := counts[node]) is None:
            raise ValueError(f"line {node.start_mark.line + 1} is a part of itself, by an alias.")
        return known
    counts[node] = None
    total, lines = 1, {}
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        if isinstance(node, yaml.MappingNode):
            key, child = child
            line, is_plain = key.start_mark.line + 1, isinstance(key, yaml.ScalarNode) and key.tag != MERGE
            # As Python compares them: `on` is `true`.
            same = loader.construct_object(key) if is_plain else (key.tag, str(key.value))
            if same in lines:
                raise ValueError(f"key {key.value!r} is there in line {lines[same]} and in line {line}; keep one.")
            lines[same] = line
            total += _count(key, counts, loader)
        total += _count(child, counts, loader)
    if total > MAX_NODES:
        raise ValueError(f"expected at most {MAX_NODES} values, found more by aliases; write them out.")
    counts[node] = total
    return total
