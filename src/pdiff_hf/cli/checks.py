"""What is refused at once: before the libraries that do the work are imported, which takes seconds and a gigabyte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tasks.config import FunctionConfig, SplitConfig


def check_dataset(source: str | Path) -> Path | None:
    """The folder of a parameter dataset, `None` for one on the Hub; `ValueError` for what is neither."""
    from ..data.folder import config_folder
    from ..files import check_artefact
    from ..hub.snapshot import split_hub_id

    if isinstance(source, str) and split_hub_id(source) is not None:
        return None
    folder = config_folder(source)
    check_artefact(folder, "layout.json", "a parameter dataset")
    return folder


def check_pipeline(source: str | Path) -> None:
    """Raise `ValueError` for what is neither the folder of a pipeline nor a name on the Hub."""
    from ..files import check_artefact
    from ..hub.snapshot import split_hub_id

    if split_hub_id(source) is None:
        check_artefact(source, "model_index.json", "a pipeline")


def check_generated(folder: Path) -> None:
    """Raise `ValueError` for what is no folder of generated networks."""
    from ..files import check_artefact

    check_artefact(folder, "index.json", "generated networks")


def parse_given_task(spec: str | None) -> SplitConfig | FunctionConfig | None:
    """What `--task` names, `None` without it; `ValueError` for what is malformed."""
    if spec is None:
        return None
    from ..runs.task_spec import parse_task

    return parse_task(spec)


def parse_condition(text: str | None) -> Any:
    """What `--condition` says, `None` without it; `ValueError` for what is no JSON of one condition or several."""
    if text is None:
        return None
    from ..files import errors_of, parse_json

    with errors_of(f'--condition {text:.200} is not valid JSON, such as \'{{"classes": ["cat", "dog"]}}\''):
        return parse_json(text)


def check_import(
    sources: Sequence[str], all_revisions: bool, pattern: str | None, out: Path, conditions: Path | None = None
) -> None:
    """Raise `ValueError` for sources of checkpoints that are not on this machine, and for what is malformed."""
    from ..data.importing.local import find_local
    from ..data.importing.names import split_sources

    _check_import_options(pattern, out, conditions)
    local, _ = split_sources(sources, all_revisions)
    if local:
        find_local(local)


def check_adapters(
    sources: Sequence[str], base: str, pattern: str | None, out: Path, conditions: Path | None = None
) -> None:
    """Raise `ValueError` for adapters on this machine whose configs, names and shapes are against them."""
    from ..data.importing.adapters.headers import check_early
    from ..data.importing.adapters.sources import find_adapters, read_config_of
    from ..files import errors_of

    _check_import_options(pattern, out, conditions)
    local = [source for source in sources if Path(source).expanduser().is_dir()]
    for checkpoint in find_adapters(local) if local else ():
        config = read_config_of(checkpoint)
        with errors_of(checkpoint.where):
            check_early(*checkpoint.files(), config, base)


def _check_import_options(pattern: str | None, out: Path, conditions: Path | None) -> None:
    """What imports of checkpoints and of adapters have in common."""
    from ..data.importing.checkpoint import compile_pattern
    from ..files import check_new, check_regular

    check_new(out, "the dataset")
    if conditions is not None:
        check_regular(conditions, "a file of conditions")
    if pattern is not None:
        compile_pattern(pattern)
