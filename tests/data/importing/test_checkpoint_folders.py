import io
import itertools
import json
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from checkpoint_folders import (
    AVERAGED,
    CLASSES,
    FILES,
    SUFFIXES,
    network,
    prefixed,
    save,
    state_dict,
    trained_part,
    write_config,
)
from torch import nn

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.importing.importer import import_checkpoints

BASE = BaseModel.timm("test_resnet", num_classes=CLASSES)
INPUTS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def run_import(source, out, **options):
    return import_checkpoints(source, out, **{"base_model": BASE, "progress": False, **options})


@torch.no_grad()
def logits(model):
    return model.eval().float()(INPUTS)


def rebuilt(folder):
    """Logits of the networks that the rows of a dataset rebuild."""
    dataset = ParameterDataset(folder)
    found = []
    for vector in dataset.vectors()[:]:
        model = dataset.base_model.build()
        model.load_state_dict({**model.state_dict(), **dataset.layout.unflatten(vector)}, strict=True)
        found.append(logits(model))
    return torch.stack(found)


def columns(folder, *names):
    table = ParameterDataset(folder).rows.with_format(None)
    return [table[name][:] for name in names]


def expected(*seeds):
    return torch.stack([logits(network(seed)) for seed in seeds])


@pytest.mark.parametrize("name", FILES)
def test_network_is_found_in_what_a_file_holds(tmp_path, name):
    found = run_import(save(tmp_path / "nets", FILES[name]), tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))
    assert found["notes"] == [] or name == "counters of a profiler"
    assert found["metrics"] == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_content_decides_and_not_the_suffix(tmp_path, suffix):
    run_import(save(tmp_path / "nets", FILES["numpy scalar"], "net_{}" + suffix), tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


def test_numbers_behind_dots_are_no_suffix(tmp_path):
    run_import(save(tmp_path / "nets", state_dict, "final.{}.0.3"), tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


def test_file_of_the_old_format_is_read(tmp_path):
    make = FILES["without counters"]
    run_import(save(tmp_path / "nets", make, _use_new_zipfile_serialization=False), tmp_path / "ds")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


@pytest.mark.parametrize(("raw", "averaged"), AVERAGED)
def test_of_weights_and_their_average_the_weights_are_taken(tmp_path, raw, averaged):
    def make(model, seed):
        return {averaged: network(seed + 100).state_dict(), raw: model.state_dict()}

    folder = save(tmp_path / "nets", make)
    found = run_import(folder, tmp_path / "ds")
    assert found["notes"] == [f"Entry {raw!r} is taken; {averaged!r} fits too: key={averaged!r}."]
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))
    assert run_import(folder, tmp_path / "average", key=averaged)["notes"] == []
    torch.testing.assert_close(rebuilt(tmp_path / "average"), expected(100, 101, 102))


def test_two_networks_need_a_key(tmp_path):
    def make(model, seed):
        return {"generator": model.state_dict(), "discriminator": network(seed + 50).state_dict()}

    folder = save(tmp_path / "nets", make)
    with pytest.raises(
        ValueError, match=r"2 entries fit the network: 'generator' and 'discriminator'; name one, as key="
    ):
        run_import(folder, tmp_path / "ds")
    run_import(folder, tmp_path / "ds", key="discriminator")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(50, 51, 52))
    with pytest.raises(ValueError, match="expected an entry 'decoder' with tensors, found 'generator' and 'discrim"):
        run_import(folder, tmp_path / "other", key="decoder")


def test_two_networks_in_one_state_dict_need_a_key(tmp_path):
    def make(model, seed):
        return {"state_dict": prefixed(model, "actor.") | prefixed(network(seed + 50), "critic.")}

    folder = save(tmp_path / "nets", make)
    with pytest.raises(ValueError, match=r"2 entries fit .* 'state_dict.actor' and 'state_dict.critic'"):
        run_import(folder, tmp_path / "ds")
    run_import(folder, tmp_path / "ds", key="state_dict.critic")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(50, 51, 52))


def test_list_of_two_networks_needs_a_key(tmp_path):
    folder = save(tmp_path / "nets", lambda m, i: [m.state_dict(), network(i + 50).state_dict()])
    with pytest.raises(ValueError, match="2 entries fit the network: '0' and '1'"):
        run_import(folder, tmp_path / "ds")
    run_import(folder, tmp_path / "ds", key="1")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(50, 51, 52))


def test_tensors_beside_the_network_are_named(tmp_path):
    def make(model, _):
        return {"state_dict": {**prefixed(model, "model."), "criterion.weight": torch.ones(10)}}

    found = run_import(save(tmp_path / "nets", make), tmp_path / "ds")
    assert found["notes"] == ["Tensors that the network does not have are left out: state_dict.criterion.weight."]
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(0, 1, 2))


@pytest.mark.parametrize(("dtype", "note"), [(torch.half, []), (torch.bfloat16, []), (torch.double, ["Double"])])
def test_types_are_those_of_the_file_but_double(tmp_path, dtype, note):
    found = run_import(save(tmp_path / "nets", lambda m, i: m.to(dtype).state_dict()), tmp_path / "ds")
    assert [text.split()[0] for text in found["notes"]] == note
    wanted = torch.stack([logits(network(seed).to(dtype)) for seed in range(3)])
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), wanted)


def test_partial_checkpoints_are_completed_by_a_file_of_the_rest(tmp_path):
    part = save(tmp_path / "nets", lambda m, i: {f"model.{n}": t for n, t in trained_part(i).items()})
    rest = tmp_path / "rest.pth"
    torch.save(prefixed(network(9), "model."), rest)
    with pytest.raises(ValueError, match=r"\d+ of \d+ tensors fit test_resnet; .* it is missing. .*: rest=PATH"):
        run_import(part, tmp_path / "ds")
    assert run_import(part, tmp_path / "ds", rest=rest)["num_parameters"] == 384
    assert ParameterDataset(tmp_path / "ds").layout.names == (*trained_part(0),)
    wanted = []
    for seed in range(3):
        model = network(9)
        model.load_state_dict({**model.state_dict(), **trained_part(seed)})
        wanted.append(logits(model))
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), torch.stack(wanted))
    with pytest.raises(ValueError, match=r"expected a file of the whole network at .*none.pth, found none"):
        run_import(part, tmp_path / "other", rest=tmp_path / "none.pth")


def test_another_network_of_the_family_is_named(tmp_path):
    torch.save(network(0).state_dict(), tmp_path / "a.pt")
    torch.save(network(1).state_dict(), tmp_path / "b.pt")
    # The same file of timm has both.
    with pytest.raises(ValueError, match=r"of \d+ tensors fit test_vit; .*|none of the \d+ tensors of test_vit"):
        run_import(tmp_path, tmp_path / "ds", base_model=BaseModel.timm("test_vit"))
    import timm

    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("resnet14t", num_classes=4).state_dict(), tmp_path / f"{'ab'[seed]}.pt")
    with pytest.raises(ValueError, match=r"Names and shapes are those of timm:resnet14t\."):
        run_import(tmp_path, tmp_path / "ds", base_model=BaseModel.timm("resnet26t"))


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("test_resnet", {"num_classes": 7}, "num_classes=7"),
        ("test_resnet", {"num_classes": 7, "in_chans": 1}, "num_classes=7, in_chans=1"),
        ("test_resnet", {"num_classes": 0}, "num_classes=0"),
        ("test_vit", {"num_classes": 3, "img_size": 96}, "num_classes=3, img_size=96"),
    ],
)
def test_arguments_are_told_by_the_shapes(tmp_path, name, arguments, told):
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(BaseModel.timm(name, **arguments).build().state_dict(), tmp_path / f"{seed}.pt")
    found = run_import(tmp_path, tmp_path / "ds", base_model=BaseModel.timm(name))
    assert f"The network is {name} with {told}, as the shapes say." in found["notes"]
    assert ParameterDataset(tmp_path / "ds").base_model.kwargs == arguments


def test_network_of_torchvision_is_imported(tmp_path):
    import torchvision

    for seed in range(2):
        torch.manual_seed(seed)
        model = torchvision.models.squeezenet1_1(num_classes=5)
        torch.save({"state_dict": model.state_dict()}, tmp_path / f"{seed}.pt")
    base = BaseModel("torchvision", "squeezenet1_1")
    run_import(tmp_path, tmp_path / "ds", base_model=base)
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.base_model.kwargs == {"num_classes": 5}
    assert torch.equal(dataset.layout.flatten(model), dataset.vectors()[1])
    with pytest.raises(ValueError, match=r"torchvision .* has no model 'nothing'"):
        run_import(tmp_path, tmp_path / "other", base_model=BaseModel("torchvision", "nothing"))


# Folders


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
