"""Import of PEFT adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .app import line_printer, print_json, quiet, warnings_as_lines
from .checks import check_adapters, parse_given_task

if TYPE_CHECKING:
    from ..pipelines.pipeline_pdiff import PDiffPipeline

# An adapter that moves outputs by less of their spread does nothing that could be seen.
NO_EFFECT = 1e-3


def import_adapter_folders(
    sources: Sequence[str],
    out: Path,
    base: str | None,
    kwargs: dict[str, Any],
    refused: dict[str, Any],
    *,
    keep_scaling: bool,
    base_name: str | None,
    metrics_pattern: str | None,
    task: str | None,
    conditions: Path | None,
    encoder: str | None,
    as_json: bool,
) -> dict[str, Any]:
    """What `pdiff import --peft` does; `refused` are options of other imports, which may not be given."""
    if base is None:
        raise ValueError(
            "--peft: give --base, the network that the adapters are for: a folder of transformers or timm, timm:NAME, "
            "or user/name on the Hub."
        )
    if given := [name for name, value in refused.items() if value]:
        raise ValueError(f"{given[0]} is not for adapters, which are imported whole; leave it out.")
    if base_name not in (None, "any"):
        raise ValueError(f"--base-name: expected 'any', found {base_name!r}.")
    check_adapters(sources, base, metrics_pattern, out, conditions)
    given_task = parse_given_task(task)
    quiet()
    from ..data.importing.adapters.importer import import_adapters
    from ..runs.task_spec import task_describer
    from ..text_encoder import TextEncoder

    line = line_printer(as_json)
    with warnings_as_lines(line):
        summary = import_adapters(
            sources,
            out,
            base,
            kwargs=kwargs,
            keep_scaling=keep_scaling,
            any_base_name=base_name == "any",
            metrics_pattern=metrics_pattern,
            describe_task=None if given_task is None else task_describer(given_task, line),
            conditions=conditions,
            embed=None if encoder is None else TextEncoder(encoder),
        )
    line(f"Base: {base}, sha256 {summary['base_sha256'][:12]}…; no adapter says which weights it was trained on.")
    _say(summary["effects"], line)
    print_json({"folder": str(out), **summary}, as_json)
    return summary


def say_effects(pipeline: PDiffPipeline, generated: Path, line: Callable[[str], None], trusted: Sequence[str]) -> None:
    """Say what generated adapters do to the outputs of their base, on random inputs."""
    from ..adapters.probe import NUM_PROBED, adapter_effects
    from ..pipelines.network_folder import load_generated

    rows = load_generated(generated, pipeline.layout)[:NUM_PROBED]
    _say(adapter_effects(pipeline.base_model.build(trusted), pipeline.layout, rows), line)


def _say(effects: Sequence[float], line: Callable[[str], None]) -> None:
    if not effects:
        return line("What they do to the base's outputs is not known: it does not say which inputs it takes.")
    line(
        f"On random inputs, the first {len(effects)} move the base's outputs by {min(effects):.2g} to "
        f"{max(effects):.2g} of their spread."
    )
    if weak := sum(effect < NO_EFFECT for effect in effects):
        line(f"WARNING: {weak} of them do nothing: their outputs are the base's.")
