"""What the tests of several processes do in each of them; started by `accelerate launch`."""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, gather_object

from functional_zoo import FUNCTIONAL
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.files import read_json, write_json
from pdiff_hf.models.kinds import (
    AutoencoderFunctionalConfig,
    AutoencoderPCAConfig,
    AutoencoderPDiffConfig,
    UNet1DConditionConfig,
    UNet1DConfig,
)
from pdiff_hf.tasks.evaluators import make_gate_evaluator
from pdiff_hf.tasks.probes import make_probes
from pdiff_hf.training import loop
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.checkpoints import complete_checkpoints
from pdiff_hf.training.diffusion import train_diffusion
from pdiff_hf.training.interrupts import TrainingInterrupted
from pdiff_hf.training.logs import NonFiniteLossError
from small_training import train

LATENTS = {"latent_channels": 4, "latent_length": 2, "min_explained_variance": -1e9}
# Adam's first steps turn rounding into whole steps where a gradient is tiny; a low rate keeps the curves comparable.
COMMON = {"steps": 12, "lr_warmup_steps": 3, "learning_rate": 1e-5, "checkpointing_steps": 5, "use_ema": True}


def digest(model):
    """One hash of all weights and buffers."""
    state = model.state_dict()
    return hashlib.sha256(b"".join(state[name].cpu().numpy().tobytes() for name in sorted(state))).hexdigest()


def stages(dataset, folder, batch, resume=None, steps=12, **options):
    """Both training stages: logs, and the hashes of the two models on this process."""
    common = {**COMMON, "train_batch_size": batch, "steps": steps, **options}
    autoencoder, _ = train_autoencoder(
        dataset, folder / "ae", AutoencoderPDiffConfig(**common, **LATENTS), resume_from_checkpoint=resume
    )
    # Trained again from a checkpoint by another number of processes, it may be another one to rounding.
    state, of_pipeline = PartialState(), folder / "first_ae"
    if state.is_main_process and not of_pipeline.is_dir():
        shutil.copytree(folder / "ae", of_pipeline, ignore=shutil.ignore_patterns("checkpoint-*"))
    state.wait_for_everyone()
    config = UNet1DConfig(**common, block_out_channels=(64, 64))
    pipeline = train_diffusion(dataset, of_pipeline, folder / "p", config, resume)
    logs = [(folder / stage / "train_log.jsonl").read_text().splitlines() for stage in ("ae", "p")]
    return [json.loads(line) for log in logs for line in log], [digest(autoencoder), digest(pipeline.unet)]


def chosen(dataset, folder, batch, resume=None):
    """The denoiser whose step is chosen: what is known of it, and its hash on this process."""
    autoencoder = folder.parent / "chosen_by" / "ae"
    if not (autoencoder / "config.json").is_file():
        train_autoencoder(dataset, autoencoder, AutoencoderPCAConfig(**LATENTS))
    common = {**COMMON, "train_batch_size": batch, "learning_rate": 1e-3}
    config = UNet1DConditionConfig(**common, block_out_channels=(64,))
    pipeline = train_diffusion(dataset, autoencoder, folder, config, resume)
    return read_json(folder / "denoiser.json"), digest(pipeline.unet)


def functional(zoo, folder, batch, resume=None, **options):
    """The stage that compares functions: its log, and the hash of the autoencoder on this process."""
    given = {**FUNCTIONAL, **COMMON, "learning_rate": 1e-4, "train_batch_size": batch, **options}
    dataset, config = ParameterDataset(zoo), AutoencoderFunctionalConfig(**given)
    evaluator, probes = make_gate_evaluator(dataset), make_probes(dataset, config)
    autoencoder, report = train_autoencoder(dataset, folder, config, evaluator, resume, probes=probes)
    log = (folder / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in log], digest(autoencoder), report


class ShardedOnCPU(Accelerator):
    """Accelerate takes FSDP on GPUs only; torch shards on gloo as well, in the same code."""

    wrap = "NO_WRAP"

    def __init__(self, **options):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy=self.wrap,
            cpu_ram_efficient_loading=False,
            state_dict_type="SHARDED_STATE_DICT",
        )
        super().__init__(fsdp_plugin=plugin, **options)
        PartialState().distributed_type = self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = plugin


def main(dataset, one, output, zoo, tasks):
    output = Path(output)
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    results = {}

    def note(name, *values):
        gathered = gather_object([values])
        results[name] = gathered

    # 1. The same global batch, with and without accumulation; rows of an epoch
    note("same", *stages(dataset, output / "same", 4))
    note("accumulated", *stages(dataset, output / "accumulated", 2, gradient_accumulation_steps=2))
    seen = []
    batch_type = loop.GlobalBatch

    def remember(*args, **options):
        batch = batch_type(*args, **options)
        seen.extend(batch.indices.tolist())
        return batch

    loop.GlobalBatch = remember
    train(output / "epoch", steps=5, train_batch_size=2)
    loop.GlobalBatch = batch_type
    note("epoch", seen)

    # 2. Another number of processes goes on
    note("resumed", *stages(dataset, Path(one), 4, "latest"))
    stages(dataset, output / "begun", 4, steps=12)

    note("chosen", *chosen(dataset, output / "chosen", 4))
    note("chosen_resumed", *chosen(dataset, output / "chosen", 4, "latest"))
    note("told", *chosen(tasks, output / "conditions" / "told", 4))

    note("functional", *functional(zoo, output / "functional", 4))
    note("functional_accumulated", *functional(zoo, output / "half", 2, gradient_accumulation_steps=2))
    note("functional_resumed", *functional(zoo, output / "functional", 4, "latest"))

    # 3. What happens to one process
    try:
        train(output / "nan", loss=lambda call: float("nan") if call == 3 and state.process_index == 1 else 1.0)
    except NonFiniteLossError as error:
        note("nan", str(error), [path.name for path in complete_checkpoints(output / "nan")])
    try:
        train(
            output / "term",
            loss=lambda call: os.kill(os.getpid(), signal.SIGTERM) or 1.0 if call == state.process_index == 1 else 1.0,
            steps=5000,
            checkpointing_steps=10000,
        )
    except TrainingInterrupted as error:
        note("term", error.code, [path.name for path in complete_checkpoints(output / "term")])
    save_state = Accelerator.save_state

    def full(self, folder, *args, **options):
        if folder.endswith("checkpoint-4") and state.is_main_process:
            raise OSError(28, "No space left on device")
        return save_state(self, folder, *args, **options)

    Accelerator.save_state = full
    try:
        train(output / "full")
    except ValueError as error:
        note("full", str(error), [path.name for path in (output / "full").iterdir()])
    Accelerator.save_state = save_state

    # 4. Sharded
    loop.Accelerator = ShardedOnCPU
    note("sharded", *stages(dataset, output / "sharded", 4))
    assert (output / "sharded" / "ae" / "checkpoint-10" / "pytorch_model_fsdp_0").is_dir()
    note("sharded_resumed", *stages(dataset, output / "sharded", 4, "latest"))
    note("functional_sharded", *functional(zoo, output / "functional_sharded", 4))
    note("chosen_sharded", *chosen(dataset, output / "chosen_sharded", 4))
    note("chosen_sharded_resumed", *chosen(dataset, output / "chosen_sharded", 4, "latest"))
    note("told_sharded", *chosen(tasks, output / "conditions" / "told_sharded", 4))
    note("sharded_clipped", *stages(dataset, output / "clipped", 4, max_grad_norm=1e-3))
    ShardedOnCPU.wrap = "SIZE_BASED_WRAP"
    try:
        train(output / "wrapped")
    except ValueError as error:
        note("wrapped", str(error))
    if state.is_main_process:
        write_json(output / "results.json", results)
    # One that leaves while the other still talks ends in std::terminate.
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
