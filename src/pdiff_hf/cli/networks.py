"""Generated networks: drawn, judged, and followed on their way out of noise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .adapters import say_effects
from .app import AsJson, TaskSpec, Trusted, app, command, console, line_printer, print_json, quiet, warnings_as_lines
from .checks import check_dataset, check_generated, check_pipeline, parse_condition, parse_given_task

if TYPE_CHECKING:
    from ..pipelines.pipeline_pdiff import PDiffPipeline


@app.command()
def generate(
    pipeline: Annotated[str, typer.Argument(help="Folder of a pipeline, or user/name[@revision] on the Hub.")],
    out: Annotated[Path, typer.Option(help="New folder for the networks.")],
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="100 by default; as many as conditions with --conditions.")
    ] = None,
    num_inference_steps: Annotated[int, typer.Option(min=1)] = 20,
    scheduler: Annotated[str, typer.Option(help="dpmsolver++, ddim or ddpm")] = "dpmsolver++",
    truncation: Annotated[float, typer.Option(min=0, max=1, help="1 as sampled, 0 the mean")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    condition: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='What the networks are for, such as {"classes": ["cat", "dog"]}.'),
    ] = None,
    conditions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A network for every line of a file, a condition as JSON each.")
    ] = None,
    format: Annotated[
        Literal["files", "dataset"],
        typer.Option(help="files: a safetensors file each; dataset: rows of a parameter dataset, for many."),
    ] = "files",
    guidance_scale: Annotated[
        float, typer.Option(min=0, help="1 the condition as it was learned, more exaggerates it, 0 leaves it out")
    ] = 1.0,
    # The second name is that of version 0.1.
    choose: Annotated[
        str | None,
        typer.Option("--choose", "--select", metavar="val", help="Keep the best on these examples only."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Number of networks to keep; 1 by default.")] = None,
    soup: Annotated[bool, typer.Option("--soup", help="Also write the average of those that are kept.")] = False,
    reestimate_bn: Annotated[
        bool, typer.Option("--reestimate-bn", help="Re-estimate BatchNorm statistics on training examples.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="Parameter dataset whose examples are chosen on; beside PIPELINE by default.")
    ] = None,
    task: TaskSpec = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Generate networks as safetensors files or rows of a dataset; with --choose, the best of them."""
    if conditions is not None and (condition is not None or num_samples is not None):
        raise ValueError(
            f"--conditions has one for every network; leave out {'--condition' if condition else '--num-samples'}."
        )
    if format == "dataset" and choose is not None:
        raise ValueError("networks that are chosen are files; leave out --format dataset.")
    given = {"--top": top, "--soup": soup, "--reestimate-bn": reestimate_bn, "--dataset": dataset}
    given |= {"--task": task, "--trust": trusted}
    if choose is None and (needless := [name for name, value in given.items() if value]):
        raise ValueError(f"{needless[0]} is for chosen networks; give --choose val too.")
    from ..files import check_new, read_json
    from ..runs.recipe import GenerateConfig
    from ..runs.validation import check_split, parse_config

    parse_config(GenerateConfig, {"scheduler": scheduler})
    check_new(out, "the networks")
    check_pipeline(pipeline)
    beside = Path(os.path.normpath(Path(pipeline, "..", "dataset")))
    if choose is not None:
        check_split(choose)
        if (top or 1) > (num_samples or 100):
            raise ValueError(f"expected --top of at most --num-samples, {num_samples or 100}, found {top}.")
        if dataset is None and not beside.is_dir():
            raise ValueError(f"expected a parameter dataset at {beside}, found none; name it with --dataset.")
        check_dataset(dataset or beside)
    given_task, wanted = parse_given_task(task), parse_condition(condition)
    if conditions is not None:
        from ..runs.conditions_file import read_conditions

        wanted = read_conditions(conditions)
    num_samples = num_samples or (100 if conditions is None else len(wanted))
    quiet()
    from ..data.dataset import ParameterDataset
    from ..pipelines.hub import resolve_pipeline
    from ..pipelines.sampling import load_pipeline
    from ..results.metric import Metric
    from ..runs.generate import ChoiceConfig, generate_networks
    from ..runs.generate_rows import generate_rows

    loaded, choice = load_pipeline(resolve_pipeline(pipeline)), None
    if choose is not None:
        opened = ParameterDataset(dataset or beside, trusted_imports=trusted or ())
        choice = ChoiceConfig(opened, choose, top or 1, soup, reestimate_bn, given_task)
    line, summary = line_printer(as_json), {"folder": str(out), "num_samples": num_samples}
    drawn = (loaded, out, num_samples, num_inference_steps, scheduler, truncation, seed)
    told = {"condition": wanted, "guidance_scale": guidance_scale}
    with warnings_as_lines(line):
        if format == "dataset":
            generate_rows(*drawn, **told)
        else:
            generate_networks(*drawn, choice, **told)
    if format == "dataset":
        line(f"{num_samples} networks → {out}\nRead them: pdiff_hf.ParameterDataset({str(out)!r}).vectors()")
        return print_json(summary, as_json)
    if choice is None:
        line(f"{num_samples} networks → {out}")
        if loaded.base_model is not None and loaded.base_model.adapter is not None:
            say_effects(loaded, out, line, trusted or ())
            line(f"Load one: peft.PeftModel.from_pretrained(base, {str(out / '00000')!r})")
        else:
            line(f"Load one: {_how_to_load(loaded, pipeline, min(out.glob('*.safetensors')))}")
        if judged := _how_to_judge(Path(pipeline), out):
            line(f"Next: {judged}")
        return print_json(summary, as_json)
    found = read_json(out / "index.json")["choice"]
    metric = Metric.model_validate(found.get("metric", {}))
    on = f"on {found['num_val']} val examples" if metric.is_accuracy else f"by {metric.title}"
    line(
        f"{found['num_drawn']} networks drawn in {found['seconds']['draw']:.1f} s, {len(found['draws'])} chosen {on} "
        f"in {found['seconds']['select']:.1f} s → {out}"
    )
    if found["num_dropped"]:
        line(f"Dropped, because not finite: {found['num_dropped']}.")
    key = "val_accuracy" if metric.is_accuracy else "val_score"
    write = "{:.2%}".format if metric.is_accuracy else metric.write
    line(f"Val {metric.name}: {', '.join(map(write, found[key]))}.")
    if reestimate_bn:
        before = found["val_accuracy_before_batch_norm"]
        line(f"Before BatchNorm statistics were re-estimated: {', '.join(f'{accuracy:.2%}' for accuracy in before)}.")
    if soup:
        difference = metric.worth(found[f"soup_{key}"] - found[key][0])
        than = "better than" if difference > 0 else "worse than" if difference < 0 else "equal to"
        line(f"Their soup: {write(found[f'soup_{key}'])}, {than} the best single one.")
    rest = "; pdiff evaluate reports on test examples." if metric.is_accuracy else ": they were chosen by it."
    line(f"Val {metric.name} of chosen networks is optimistic{rest}")
    print_json({**summary, "choice": found}, as_json)


def _how_to_load(loaded: PDiffPipeline, pipeline: str, file: Path) -> str:
    """A line of Python that loads a generated network; where files hold a part of it, with the rest."""
    from safetensors import safe_open

    state = f"safetensors.torch.load_file({str(file)!r})"
    if loaded.base_model is not None and loaded.base_model.weights is not None:
        with safe_open(loaded.base_model.checked_weights(), framework="pt") as weights:
            if not set(weights.keys()) <= {*loaded.layout.names}:
                return f"model = PDiffPipeline.from_pretrained({pipeline!r}).build_model({state})"
    return f"model.load_state_dict({state})"


def _how_to_judge(pipeline: Path, out: Path) -> str | None:
    """The command that evaluates the networks of a run whose dataset is here; without a task, with a place for one."""
    from ..files import read_json
    from ..strict_yaml import read_mapping

    run, words = pipeline.parent, ["pdiff", "evaluate", pipeline.parent]
    if (pipeline.name, out) != ("pipeline", run / "generated"):
        return None
    dataset = run / "dataset"
    try:
        if not dataset.is_dir():
            dataset = Path(read_mapping(run / "recipe.yaml")["dataset"])
            words += ["--dataset", dataset]
        metadata = read_json(dataset / "stats.json")["metadata"]
    except (KeyError, TypeError, ValueError):
        return None
    return command(*words) if metadata.get("task") else f"{command(*words)} --task …"


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run: dataset/, pipeline/ and generated/ inside.")],
    dataset: Annotated[
        str | None, typer.Option(help="Parameter dataset, when it is elsewhere or user/name[@revision] on the Hub.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Pipeline, when it is elsewhere or user/name[@revision] on the Hub.")
    ] = None,
    generated: Annotated[Path | None, typer.Option(help="Generated networks, when they are elsewhere.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; RUN_DIR/report by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the baselines' draws; the recipe's by default.")] = None,
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="Also fine-tune for as long as the run's generator took.")
    ] = False,
    task: TaskSpec = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate generated networks against originals and baselines, and write the report anew."""
    if fine_tune and (dataset or pipeline or generated):
        raise ValueError("--fine-tune takes the time that the run's own generator took; leave out the other folders.")
    from ..runs.folder import Run, check_report_folder
    from ..runs.recipe import recorded_section

    run = Run(run_dir)
    config = recorded_section(run_dir, "evaluate", {"seed": seed, "fine_tune": fine_tune or None})
    check_dataset(dataset or run.path("collect"))
    check_pipeline(pipeline or run.path("diffusion"))
    check_generated(generated or run.path("generate"))
    check_report_folder(out or run.path("evaluate"))
    given_task = parse_given_task(task)
    quiet()
    from ..data.dataset import ParameterDataset
    from ..pipelines.hub import resolve_pipeline
    from ..report.write import make_table
    from ..runs.evaluate import evaluate_run
    from ..tasks.evaluators import require_task

    line = line_printer(as_json)
    opened = ParameterDataset(dataset or run.path("collect"), trusted_imports=trusted or ())
    with warnings_as_lines(line):
        metrics = evaluate_run(
            run,
            config,
            opened,
            None if given_task is None else require_task(opened, given_task),
            pipeline_dir=None if pipeline is None else resolve_pipeline(pipeline),
            generated_dir=generated,
            output_dir=out,
        )
    if not as_json:
        console.print(make_table(metrics))
        line(f"Report: {(out or run_dir / 'report') / 'report.html'}")
    print_json(metrics.to_dict(), as_json)


@app.command()
def trajectory(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run: dataset/ and pipeline/ inside.")],
    num_starts: Annotated[int, typer.Option(min=1, help="Networks to follow.")] = 5,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="The recipe's by default.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="dpmsolver++, ddim or ddpm; the recipe's by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise; the recipe's by default.")] = None,
    condition: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="What the networks are for, of a run with networks of many tasks."),
    ] = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Follow networks from noise to the end: their accuracy, and where they lie among the originals."""
    from ..runs.folder import Run
    from ..runs.recipe import recorded_section

    run, wanted = Run(run_dir), parse_condition(condition)
    given = {"num_inference_steps": num_inference_steps, "scheduler": scheduler, "seed": seed}
    config = recorded_section(run_dir, "generate", given)
    check_dataset(run.path("collect"))
    check_pipeline(run.path("diffusion"))
    quiet()
    from ..data.dataset import ParameterDataset
    from ..runs.trajectory import trajectory_run

    dataset = ParameterDataset(run.path("collect"), trusted_imports=trusted or ())
    line = line_printer(as_json)
    with warnings_as_lines(line):
        found, files = trajectory_run(run, dataset, config, num_starts, wanted)
    ends = {key: _mean(found["noisy"][key][-1]) for key in ("accuracy", "distance", "distance_to_mean")}
    line(
        f"{num_starts} networks, {config.num_inference_steps} steps: test accuracy from "
        f"{_mean(found['noisy']['accuracy'][0]):.2%} to {ends['accuracy']:.2%} ({found['compared_with']} "
        f"{found['originals']['accuracy']['mean']:.2%}); they end {ends['distance']:.3g} yardsticks from the nearest "
        f"original and {ends['distance_to_mean']:.2f} times as far from the originals' mean as originals do."
    )
    for file in files:
        line(f"→ {file}")
    line("The next pdiff evaluate puts both figures into report.html.")
    print_json(found, as_json)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
