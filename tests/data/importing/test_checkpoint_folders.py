import io
import itertools
import json
import pickle
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from checkpoint_folders import (
    CLASSES,
    FILES,
    columns,
    expected,
    network,
    prefixed,
    rebuilt,
    run_import,
    save,
    state_dict,
    write_config,
)
from torch import nn

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.importing.importer import import_checkpoints


def test_one_level_of_folders_is_descended(tmp_path):
    run_import(save(tmp_path / "nets", state_dict, "epoch_{}/model.pth"), tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))
    assert columns(tmp_path / "ds", "run", "epoch") == [["nets"] * 3, [0, 1, 2]]


def test_folders_of_several_files_are_runs(tmp_path):
    save(tmp_path / "nets" / "b", state_dict, count=2)
    save(tmp_path / "nets" / "a", state_dict, count=2)
    (tmp_path / "nets" / "logs").mkdir()
    assert run_import(tmp_path / "nets", tmp_path / "ds")["runs"] == ["a", "b"]


def test_folders_in_one_another_are_followed_as_lightning_makes_them(tmp_path):
    inner = "lightning_logs/version_0/checkpoints/epoch={0}-step={0}0.ckpt"
    save(tmp_path / "nets", FILES["prefix model."], inner)
    write_config(tmp_path / "nets" / "lightning_logs" / "version_0", {"lr": 1})
    run_import(tmp_path / "nets", tmp_path / "ds")
    assert columns(tmp_path / "ds", "epoch", "step") == [[0, 1, 2], [0, 10, 20]]


def test_what_lies_beside_weights_is_left_out(tmp_path):
    folder = save(tmp_path / "nets", state_dict, "checkpoint_{}/pytorch_model.bin")
    for seed in range(3):
        for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "sampler.bin", "scaler.pt"):
            torch.save({"state": torch.ones(2)}, folder / f"checkpoint_{seed}" / name)
    run_import(folder, tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


def test_beside_files_with_the_name_of_weights_pickles_are_none(tmp_path):
    folder = save(tmp_path / "nets", state_dict)
    (folder / "history.pkl").write_bytes(pickle.dumps({"loss": [1, 2]}))
    np.savez(folder / "inputs.npz", x=np.ones(3))
    assert run_import(folder, tmp_path / "ds")["num_checkpoints"] == 3


def test_list_of_parameters_has_no_names(tmp_path):
    folder = save(tmp_path / "nets", lambda m, i: list(m.parameters()))
    with pytest.raises(ValueError, match=r"expected tensors by name, found a list of them; save model.state_dict\(\)"):
        run_import(folder, tmp_path / "ds")


def test_one_more_width_is_no_matter_of_classes(tmp_path):
    folder = save(tmp_path / "nets", lambda m, i: {**m.state_dict(), "layer3.0.conv1.weight": torch.ones(7, 7, 1, 1)})
    with pytest.raises(ValueError, match=r"found \(7, 7, 1, 1\); it belongs to another architecture"):
        run_import(folder, tmp_path / "ds", base_model=BaseModel.timm("test_resnet"))


def test_model_states_of_deepspeed_are_read(tmp_path):
    folder = save(
        tmp_path / "nets", lambda m, i: {"module": m.state_dict(), "lr": 1}, "global_step{}/mp_rank_00_model_states.pt"
    )
    for seed in range(3):
        name = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": {}}, folder / f"global_step{seed}" / name)
    (folder / "latest").write_text("global_step2")
    run_import(folder, tmp_path / "ds")
    assert columns(tmp_path / "ds", "step") == [[0, 1, 2]]
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


def test_config_of_an_experiment_is_none_of_a_model(tmp_path):
    folder = save(tmp_path / "nets", state_dict)
    write_config(folder, {"lr": 0.1})
    run_import(folder, tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))
    with pytest.raises(ValueError, match="name the base model"):
        run_import(folder, tmp_path / "other", base_model=None)


def test_config_of_a_model_beside_files_names_the_network(tmp_path):
    folder = save(tmp_path / "nets", state_dict)
    write_config(folder, {"architecture": "test_resnet", "num_classes": CLASSES})
    run_import(folder, tmp_path / "ds", base_model=None)
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


def test_best_and_last_are_copies_and_take_nobodys_epoch(tmp_path):
    folder = save(tmp_path / "nets", state_dict)
    for name in ("best", "last"):
        torch.save(network(2).state_dict(), folder / f"{name}.pt")
    found = run_import(folder, tmp_path / "ds")
    assert found["notes"] == ["Copies are left out: best.pt of epoch_2.pt, last.pt of epoch_2.pt."]
    assert columns(tmp_path / "ds", "epoch") == [[0, 1, 2]]
    # A better one that nobody numbered is one more.
    torch.save(network(7).state_dict(), folder / "best.pt")
    assert run_import(folder, tmp_path / "more")["num_checkpoints"] == 4
    torch.testing.assert_close(rebuilt(tmp_path / "more"), expected(0, 1, 2, 7))


def test_output_of_timm_has_epochs_and_copies(tmp_path):
    def make(model, seed):
        values = {"epoch": seed, "arch": "test_resnet", "state_dict": model.state_dict(), "args": Namespace(lr=1)}
        return values | {"state_dict_ema": network(seed + 9).state_dict(), "metric": np.float64(50.0)}

    folder = save(tmp_path / "train" / "test_resnet-160", make, "checkpoint-{}.pth.tar", count=3)
    for name in ("last", "model_best"):
        torch.save(make(network(2), 2), folder / f"{name}.pth.tar")
    (folder / "args.yaml").write_text("lr: 1")
    (folder / "summary.csv").write_text("epoch,train_loss")
    found = run_import(tmp_path / "train", tmp_path / "ds")
    assert columns(tmp_path / "ds", "epoch") == [[0, 1, 2]]
    assert found["notes"][1].startswith(
        "Copies are left out: last.pth.tar of checkpoint-2.pth.tar, model_best.pth.tar of"
    )


def test_policies_in_archives_of_stable_baselines_are_read(tmp_path):
    (tmp_path / "nets").mkdir()
    for seed in range(3):
        stream = io.BytesIO()
        torch.save(prefixed(network(seed), "features_extractor."), stream)
        with zipfile.ZipFile(tmp_path / "nets" / f"model_{seed}.zip", "w") as archive:
            archive.writestr("policy.pth", stream.getvalue())
            archive.writestr("policy.optimizer.pth", b"x")
            archive.writestr("data", "{}")
            archive.writestr("_stable_baselines3_version", "2.3.0")
    run_import(tmp_path / "nets", tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


def test_arrays_by_name_are_read(tmp_path):
    (tmp_path / "nets").mkdir()
    for seed in range(3):
        arrays = {name: tensor.numpy() for name, tensor in network(seed).state_dict().items()}
        np.savez(tmp_path / "nets" / f"{seed}.npz", **arrays)
    run_import(tmp_path / "nets", tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


def test_another_depth_is_another_architecture(tmp_path):
    def perceptron(*widths):
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        return nn.Sequential(*itertools.chain(*([layer, nn.ReLU()] for layer in layers)))

    for seed in range(2):
        torch.save(perceptron(4, 3, 3, 3).state_dict(), tmp_path / f"{seed}.pt")
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", in_features=4, hidden=[3], num_classes=3)
    # Flatten comes first there.
    for seed in range(2):
        state = torch.load(tmp_path / f"{seed}.pt")
        torch.save({f"{int(n[0]) + 1}{n[1:]}": t for n, t in state.items()}, tmp_path / f"{seed}.pt")
    with pytest.raises(
        ValueError, match=r"4 of 4 tensors fit .* '5.weight', which the network does not have; it belongs"
    ):
        run_import(tmp_path, tmp_path / "ds", base_model=base)


def test_independent_files_are_runs_of_their_own(tmp_path):
    found = run_import(save(tmp_path / "nets", state_dict, "net_{}.pth.tar"), tmp_path / "ds", independent=True)
    assert found["runs"] == ["net_0", "net_1", "net_2"]
    with pytest.raises(ValueError, match="expected run or independent, found both"):
        run_import(tmp_path / "nets", tmp_path / "other", independent=True, run="mine")


def test_distributed_checkpoint_says_how_it_is_converted(tmp_path):
    (tmp_path / "nets").mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / "nets" / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="format_utils dcp_to_torch"):
        run_import(tmp_path / "nets", tmp_path / "ds")


def test_network_of_diffusers_is_imported_from_its_folders(tmp_path):
    from diffusers import UNet2DModel

    options = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8], "layers_per_block": 1}
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "norm_num_groups": 4}
    for seed in range(2):
        torch.manual_seed(seed)
        model = UNet2DModel(**options, **blocks)
        model.save_pretrained(tmp_path / f"net_{seed}")
    import_checkpoints([tmp_path / "net_0", tmp_path / "net_1"], tmp_path / "ds", progress=False)
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.base_model.library == "diffusers" and isinstance(dataset.base_model.build(), UNet2DModel)
    assert torch.equal(dataset.layout.flatten(model), dataset.vectors()[1])
    layout = json.loads((tmp_path / "ds" / "layout.json").read_text())
    assert layout["base_model"]["kwargs"]["config"]["sample_size"] == 8
