"""Stage 1: parameter dataset → autoencoder folder, with the gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..data.dataset import ParameterDataset
from ..data.vectors import StoredVectors, load_onto, split_rows, take_rows
from ..evaluation.scores import NetworkEvaluator
from ..evaluation.tensor_kinds import column_kinds
from ..files import replacing, write_json
from ..identity import check_same_network
from ..machine import one_writer, precision_of, return_large_blocks
from ..models.autoencoder_base import ParameterAutoencoderMixin
from ..models.config import AutoencoderConfig
from ..wording import setting
from .batches import GlobalBatch
from .checkpoints import writing
from .functional import FunctionObjective, Probes, check_functional_inputs
from .functional_gate import NUM_DRAWS, best_network, check_functions, match_diversity, measure_functions
from .gate import check_reconstruction, measure_reconstruction
from .logs import write_log
from .loop import make_accelerator, run_steps
from .targets import chosen_targets


@precision_of("evaluation")
@one_writer("output_dir")
def train_autoencoder(
    dataset: ParameterDataset | str | Path,
    output_dir: str | Path,
    config: AutoencoderConfig,
    evaluator: NetworkEvaluator | None = None,
    resume_from_checkpoint: str | None = None,
    accelerator: Accelerator | None = None,
    probes: Probes | None = None,
) -> tuple[ParameterAutoencoderMixin, dict]:
    """Train an autoencoder on a parameter dataset, measure the gate and save both.

    Args:
        dataset ([`ParameterDataset`], `str` or `Path`): A parameter dataset.
        output_dir (`str` or `Path`): Receives the model, its config and log, and `reconstruction.json`.
        config ([`AutoencoderConfig`]): Of a kind of `models.auto.AUTOENCODERS`: hyper-parameters and gate.
        evaluator ([`NetworkEvaluator`], *optional*): On validation examples, for the half of the gate that judges.
        resume_from_checkpoint (`str`, *optional*): A checkpoint folder or `"latest"`.
        accelerator ([`accelerate.Accelerator`], *optional*): Made from the config when absent.
        probes ([`Probes`], *optional*): Inputs of the networks; what compares functions needs them.

    Returns:
        `tuple`: the autoencoder in eval mode and the reconstruction report.

    Raises:
        PoorReconstructionError: the gate is missed and `allow_poor_reconstruction` is off. The model and
            `reconstruction.json` are written all the same, for a look at them.
        ValueError: too few checkpoints for the latent, or invalid rows in the dataset.
    """
    dataset = ParameterDataset.of(dataset)
    identity = dataset.identity
    if evaluator is not None:
        check_same_network(identity, evaluator.identity_for(identity), "make the evaluator of the dataset's networks")
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator or make_accelerator(config.optimization, output_dir)
    vectors = dataset.vectors()
    train_rows, heldout_rows = split_rows(len(vectors), config.holdout_every)
    if len(heldout_rows) == 0:
        raise ValueError(
            f"the gate holds out every {config.holdout_every}th checkpoint, but there are only {len(vectors)}. "
            f"Collect more checkpoints or lower {setting('autoencoder.holdout_every')}."
        )
    train_vectors, heldout_vectors = take_rows(vectors, train_rows), take_rows(vectors, heldout_rows)
    # Read once where they fit; else every pass reads them.
    train_vectors = load_onto(train_vectors, accelerator.device)
    own = None if evaluator is None else evaluator.rows
    own_train, own_heldout = (None, None) if own is None else (own[train_rows], own[heldout_rows])

    # 1. Statistics of the data
    history, threads, what = [], None, {}
    torch.manual_seed(config.seed)
    autoencoder = config.build(identity.to_config()).to(accelerator.device)
    if config.compares_functions:
        model = check_functional_inputs(dataset, evaluator, probes)
        what["reference"] = best = best_network(evaluator, train_vectors, own_train)
        labels = None if probes.class_labels is None else probes.class_labels[train_rows]
        inputs = probes.draw(config.num_probes, config.seed)
        kind = chosen_targets(config, of_tasks=labels is not None)
        functions = autoencoder.fit(train_vectors, inputs, model, best, probabilities=kind == "analogies")
    else:
        autoencoder.fit_statistics(train_vectors)

    # 2. Gradient steps; what has a closed form needs none
    if config.optimization is not None:
        if isinstance(train_vectors, StoredVectors):
            return_large_blocks()

        shapes = (autoencoder.vector_length,), autoencoder.latent_shape
        is_stored = isinstance(train_vectors, StoredVectors)

        def draw(batch: GlobalBatch) -> Sequence[torch.Tensor]:
            rows = train_vectors[batch.indices] if is_stored else batch.indices
            return rows, *(batch.normal(*shape) for shape in shapes)

        def loss_fn(model: torch.nn.Module, rows: torch.Tensor, *noise: torch.Tensor) -> torch.Tensor:
            return model(rows if is_stored else train_vectors[rows], *noise, loss_only=True)

        if config.compares_functions:
            objective = FunctionObjective(autoencoder, functions, train_vectors, model, probes, config, labels)
            draw, loss_fn, what = objective.draw, objective.loss, what | objective.describe()
        sources = {"layout": identity.fingerprint, "base model": identity.rest, "number of rows": len(vectors)}
        stage = (config.optimization, output_dir, "autoencoder", resume_from_checkpoint, sources)
        autoencoder, history, threads = run_steps(accelerator, autoencoder, len(train_vectors), draw, loss_fn, *stage)
        if config.compares_functions and config.match_diversity and objective.targets.combines_all:
            drawn, seen = objective.targets.draw_latents(NUM_DRAWS, config.seed), train_vectors[:NUM_DRAWS]
            what |= match_diversity(autoencoder.eval(), drawn, seen, evaluator)
    autoencoder.eval()

    # 3. Scale of the latents
    autoencoder.set_latent_statistics(autoencoder.encode_rows(train_vectors), config.latent_whitening)

    # 4. Gate
    rows = autoencoder, train_vectors, heldout_vectors, evaluator
    if config.compares_functions:
        report = measure_functions(*rows, own_heldout)
    else:
        report = measure_reconstruction(*rows, column_kinds(dataset.layout, dataset.base_model), own_heldout)
    if accelerator.num_processes > 1:
        # One gate for all, should they round differently.
        report = broadcast_object_list([report])[0]
    report |= {"passed": True, "threads": threads, **what}
    check = check_functions if config.compares_functions else check_reconstruction
    try:
        check(report, config.model_copy(update={"allow_poor_reconstruction": False}))
    except ValueError as error:
        report.update(passed=False, problem=str(error))
    with writing(accelerator, f"the autoencoder in {output_dir}", output_dir):
        if accelerator.is_main_process:
            with replacing(output_dir) as folder:
                write_json(folder / "train_config.json", {"autoencoder": config.model_dump(mode="json")})
                write_json(folder / "reconstruction.json", report)
                autoencoder.save_pretrained(folder)
                if history:
                    write_log(folder, history)
    check(report, config)
    return autoencoder, report
