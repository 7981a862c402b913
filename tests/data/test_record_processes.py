"""Networks that two processes share are recorded by the first, by their own names."""

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import TrainerControl, TrainerState, TrainingArguments

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.record import ParameterRecorder, ParameterRecorderCallback
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3

NETWORK = {"in_features": 4, "hidden": [4], "num_classes": 3}


def shard_whole(model):
    fully_shard(model[1])
    fully_shard(model)
    return model


def wrap_shards(model, **options):
    cpu = torch.device("cpu")
    model[1] = FullyShardedDataParallel(model[1], device_id=cpu, **options)
    return FullyShardedDataParallel(model, device_id=cpu, **options)


KINDS = {
    "replicated": nn.parallel.DistributedDataParallel,
    "compiled": lambda model: nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager")),
    "fully_shard": shard_whole,
    "flat": wrap_shards,
    "original": lambda model: wrap_shards(model, use_orig_params=True),
}


def record_in_two(rank, folder):
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    for name, wrap in KINDS.items():
        torch.manual_seed(0)
        network = mlp3(**NETWORK)
        layout, out = ParameterLayout.from_model(network, "head"), folder / name
        base = None
        if rank == 0:
            base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(network, out)
        layout.freeze_rest(network)
        layout.load_into(network, torch.arange(float(layout.num_parameters)))
        model = wrap(network)
        recorder = ParameterRecorder(layout, out / "ds", base)
        if name not in ("replicated", "compiled"):
            with pytest.raises(ValueError, match=r"get_model_state_dict\(model.*on the main one"):
                layout.flatten(model)
        # 1. As the Trainer calls it, on all processes
        state = TrainerState(is_world_process_zero=rank == 0)
        callback = ParameterRecorderCallback(recorder)
        arguments = TrainingArguments(str(out), use_cpu=True, report_to=[])
        callback.on_train_begin(arguments, state, TrainerControl())
        state.global_step = 1
        callback.on_step_end(arguments, state, TrainerControl(), model=model)
        # 2. As the message says
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if rank == 0:
            recorder.record(whole, step=2)
        # 3. While the whole parameters are there
        if isinstance(model, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(model):
                assert ParameterLayout.from_model(model, "head") == layout
                if rank == 0:
                    recorder.record(model, step=3)
        elif name != "fully_shard" and rank == 0:
            recorder.record(model, step=3)
        callback.on_train_end(arguments, state, TrainerControl())
        distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_networks_that_two_processes_share_are_recorded_by_their_own_names(tmp_path):
    multiprocessing.spawn(record_in_two, (tmp_path,), nprocs=2)
    for name in KINDS:
        dataset = ParameterDataset(tmp_path / name / "ds")
        assert dataset.layout.names == ("3.weight", "3.bias")
        assert len(dataset) == (2 if name == "fully_shard" else 3)
        for vector in dataset.vectors():
            assert vector.tolist() == list(range(dataset.layout.num_parameters))
        dataset.layout.load_into(dataset.base_model.build(), vector)
