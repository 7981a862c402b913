"""Generation of networks, of all that are drawn or of the best of them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters.folder import WEIGHTS as ADAPTER_WEIGHTS
from ..data.dataset import ParameterDataset
from ..evaluation.baselines import uniform_soup
from ..evaluation.batch_norm import BatchNormEstimator
from ..evaluation.choice import choose_networks
from ..evaluation.scores import NetworkEvaluator
from ..files import check_new
from ..identity import OTHER_DATASET, check_same_network, shown
from ..layout import ParameterLayout
from ..machine import one_writer, precision_of, process_state
from ..pipelines.conditioning import Conditions, Guidance, describe_conditions, prepare_guidance
from ..pipelines.network_folder import write_networks
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..pipelines.sampling import BATCH, BATCH_BYTES, SAMPLERS, Draws, batch_seed, draw_gaussian_latents, make_scheduler
from ..tasks.auto import load_task
from ..tasks.config import FunctionConfig, SplitConfig
from ..tasks.evaluators import make_evaluator, require_task
from ..tasks.function import FunctionTask
from ..tasks.task import Task
from ..wording import argument
from .validation import check_split

# The first rung of a choice is a twentieth of the images, and batches are no larger than that or this.
MAX_BATCH_SIZE = 500
SOUP_FILE = "soup.safetensors"
# Images on which BatchNorm statistics are re-estimated, all classes in proportion.
NUM_TRAIN_EXAMPLES = 2048


@dataclass(frozen=True)
class ChoiceConfig:
    """Which of the networks that are drawn are kept: the `top` ones on validation examples of the dataset's task.

    Args:
        split (`str`, *optional*, defaults to `"val"`): Others raise a `ValueError`.
        soup (`bool`, *optional*, defaults to `False`): Also keep the uniform soup of them.
        reestimate_batch_norm (`bool`, *optional*, defaults to `False`): Re-estimate the BatchNorm statistics that
            depend on the generated tensors of the chosen networks, see [`BatchNormEstimator`].
        task ([`SplitConfig`] or [`FunctionConfig`], *optional*): In place of the dataset's.
    """

    dataset: ParameterDataset
    split: str = "val"
    top: int = 1
    soup: bool = False
    reestimate_batch_norm: bool = False
    task: SplitConfig | FunctionConfig | None = None

    def __post_init__(self):
        check_split(self.split)
        if self.top < 1:
            raise ValueError(f"{argument('top')} must be at least 1, got {self.top}.")


@precision_of("evaluation")
@one_writer("output_dir", beside=True)
def generate_networks(
    pipeline: PDiffPipeline,
    output_dir: str | Path,
    num_samples: int = 100,
    num_inference_steps: int = 20,
    scheduler: str = "dpmsolver++",
    truncation: float = 1.0,
    seed: int = 0,
    choice: ChoiceConfig | None = None,
    sampler: str = "diffusion",
    dataset: ParameterDataset | None = None,
    condition: Conditions | None = None,
    guidance_scale: float = 1.0,
) -> Path:
    """Generate networks and write them to a new folder, which appears under its name when it is complete.

    Started by `accelerate launch`, the processes share the batches of networks, or with `choice` their evaluation,
    and write the files of one process.

    Args:
        output_dir (`str` or `Path`): New or empty folder.
        num_samples (`int`, *optional*, defaults to 100): Number of networks.
        num_inference_steps, truncation: See [`PDiffPipeline`].
        scheduler (`str`, *optional*, defaults to `"dpmsolver++"`): `"dpmsolver++"`, `"ddim"` or `"ddpm"`.
        seed (`int`, *optional*, defaults to 0): Of the noise.
        choice ([`ChoiceConfig`], *optional*): Write the best networks only, the very best first; all by default.
        sampler (`str`, *optional*, defaults to `"diffusion"`): `"gaussian_latents"` leaves the denoiser out: latents
            are drawn from a normal distribution with the mean and standard deviation of every latent value over the
            encoded dataset, the paper's "VAE sampling instead of diffusion".
        dataset ([`ParameterDataset`], *optional*): What the pipeline was trained on; encoded for `"gaussian_latents"`.
        condition (`Mapping` or `Sequence[Mapping]`, *optional*): What the networks are for, one for all or one each,
            and `guidance_scale` (`float`, *optional*, defaults to 1.0): see [`PDiffPipeline`].

    Raises:
        ValueError: the folder is not empty, an option is invalid, or the dataset of the choice does not fit.
    """
    output_dir = Path(output_dir)
    check_new(output_dir, "the networks")
    drawing = make_scheduler(scheduler, pipeline.scheduler, num_inference_steps)
    if num_samples < 1:
        raise ValueError(f"{argument('num_samples')} must be at least 1, got {num_samples}.")
    if sampler not in SAMPLERS or (sampler == "gaussian_latents" and dataset is None):
        raise ValueError(f"sampler must be one of {SAMPLERS}, the last with a dataset; got {sampler!r}.")
    guidance, told = Guidance(), {}
    if sampler == "diffusion":
        given = {"condition": condition, "guidance_scale": guidance_scale}
        guidance = prepare_guidance(pipeline.condition_encoder, num_samples, **given)
        if pipeline.condition_encoder is not None:
            told["guidance_scale"] = guidance_scale
        if condition is not None:
            told["condition"] = describe_conditions(pipeline.condition_encoder, condition)
    elif condition is not None:
        raise ValueError(f"sampler={sampler} knows no conditions; leave {argument('condition')} out.")
    for other in (dataset, None if choice is None else choice.dataset):
        if other is not None:
            check_same_network(other.identity, pipeline.identity, OTHER_DATASET)
    chooser = None if choice is None else _Chooser(pipeline.layout, choice, num_samples)
    pipeline.scheduler = drawing
    way = {"scheduler": scheduler, "num_inference_steps": num_inference_steps, **told}
    if sampler == "gaussian_latents":
        way = {"sampler": sampler}
    index = {**pipeline.identity.to_dict(), **_origin(pipeline, output_dir), "seed": seed, **way}
    index["truncation"] = truncation

    state = process_state()
    batch = max(1, min(BATCH, BATCH_BYTES // (4 * pipeline.layout.num_parameters)))
    batches = torch.arange(num_samples).split(batch)
    own = batches[state.process_index :: state.num_processes]

    def draw(output_type: str, parts: Sequence[torch.Tensor]) -> Iterator[list[dict] | torch.Tensor]:
        for rows in parts:
            number = rows[0].item() // batch
            yield pipeline(
                batch_size=len(rows),
                num_inference_steps=num_inference_steps,
                generator=torch.Generator().manual_seed(batch_seed(seed, number)),
                truncation=truncation,
                output_type=output_type,
                condition_embeds=guidance.rows(rows).embeds,
                guidance_scale=guidance.scale,
            ).parameters

    begin, draws = time.perf_counter(), None
    if sampler == "gaussian_latents":
        draws = Draws(pipeline, draw_gaussian_latents(pipeline, dataset, num_samples, truncation, seed))
    if chooser is None:
        states = draw("state_dict", own) if draws is None else map(draws.state_dicts, own)
        shared = {"rows": [row for rows in own for row in rows.tolist()], "num_networks": num_samples}
        shared["base_model"] = pipeline.base_model
        write_networks(output_dir, pipeline.layout, itertools.chain.from_iterable(states), index, **shared)
        return output_dir
    if draws is None:
        draws = Draws(pipeline, torch.cat(list(draw("latent", batches))))
    drawn = time.perf_counter()
    states, extra, chosen = chooser.choose(draws)
    seconds = {"draw": drawn - begin, "select": time.perf_counter() - drawn + chooser.seconds}
    chosen["choice"]["seconds"] = seconds
    write_networks(output_dir, pipeline.layout, states, {**index, **chosen}, extra, base_model=pipeline.base_model)
    return output_dir


def _origin(pipeline: PDiffPipeline, output_dir: Path) -> dict[str, str]:
    """What `index.json` says of where the pipeline is: relative to the networks, or its commit on the Hub."""
    source = pipeline.config.get("_name_or_path")
    if not source:
        return {}
    if (on_hub := shown(source)) != source:
        return {"pipeline": f"{on_hub}@{Path(source).name}"}
    return {"pipeline": Path(os.path.relpath(source, output_dir)).as_posix() if Path(source).is_dir() else source}


class _Chooser:
    """Chooses among the draws of a pipeline; what can be wrong is found before there are any."""

    def __init__(self, layout: ParameterLayout, config: ChoiceConfig, num_samples: int):
        if config.top > num_samples:
            raise ValueError(
                f"expected {argument('top')} of at most {argument('num_samples')}, {num_samples}, found {config.top}."
            )
        dataset = config.dataset
        begin = time.perf_counter()
        self._config, self._layout = config, layout
        self._task, self._model = require_task(dataset, config.task), dataset.base_model.build()
        self._evaluator = self._make_evaluator(layout)
        self._estimator = None
        if config.reestimate_batch_norm and isinstance(self._task, FunctionTask):
            raise ValueError(
                f"{argument('reestimate_batch_norm')} takes training examples, of which the function "
                f"{self._task.config.function} has none; leave it out."
            )
        if config.reestimate_batch_norm:
            size = min(NUM_TRAIN_EXAMPLES, self._task.describe()["num_train"])
            train = load_task(self._task.config.model_copy(update={"train_size": size}), dataset.base_model)
            images = train.arrays("train")[0]
            self._estimator = BatchNormEstimator(self._model, layout, images, device=self._evaluator.device)
        self.seconds = time.perf_counter() - begin

    def _make_evaluator(self, layout: ParameterLayout) -> NetworkEvaluator:
        options = {"model": self._model, "layout": layout}
        if isinstance(self._task, Task):
            # Rungs take whole batches, and the first is a twentieth of the examples.
            options["batch_size"] = min(MAX_BATCH_SIZE, -(-len(self._task.labels("val")) // 20))
        return make_evaluator(self._config.dataset, "val", self._task, **options)

    def choose(self, draws: Draws) -> tuple[list[dict], dict[str, dict], dict[str, Any]]:
        """State dicts of the chosen networks, further ones by file, and what `index.json` says of them."""
        config = self._config
        chosen = choose_networks(self._evaluator, draws, config.top)
        vectors, metric = chosen.vectors, self._evaluator.metric
        names = ["val_accuracy", "val_nll"] if metric.is_accuracy else ["val_score"]
        if config.soup:
            vectors = torch.cat([vectors, uniform_soup(vectors)])
        output = self._evaluator.predict(vectors)
        choice = {
            "split": config.split,
            "num_drawn": len(draws),
            "num_dropped": chosen.num_dropped,
            "num_val": self._evaluator.num_examples,
            "num_pilots": chosen.num_pilots,
            "rungs": [{"networks": networks, "images": images} for networks, images in chosen.rungs],
            "criterion": "accuracy, ties by nll" if metric.is_accuracy else metric.title,
            "draws": chosen.rows.tolist(),
        }
        if not metric.is_accuracy:
            choice["metric"] = metric.model_dump()
        index: dict[str, Any] = {"choice": choice}
        states = [self._layout.unflatten(vector) for vector in vectors]
        soup_file = SOUP_FILE if self._config.dataset.base_model.adapter is None else f"soup/{ADAPTER_WEIGHTS}"
        if self._estimator is not None:
            index["batch_norm"] = self._estimator.names
            choice["val_accuracy_before_batch_norm"] = output.score[: config.top].tolist()
            extended = self._estimator.extend(vectors)
            states = [self._estimator.state_dict(vector) for vector in extended]
            output = self._make_evaluator(self._estimator.layout).predict(extended)
        for name, values in zip(names, (output.score, output.ties), strict=False):
            choice[name] = values[: config.top].tolist()
            if config.soup:
                choice[f"soup_{name}"] = values[-1].item()
        extra = {}
        if config.soup:
            index["soup"], extra[soup_file] = soup_file, states.pop()
        return states, extra, index
