import pytest
import torch
from checkpoint_folders import (
    AVERAGED,
    FILES,
    SUFFIXES,
    expected,
    logits,
    network,
    prefixed,
    rebuilt,
    run_import,
    save,
    state_dict,
    trained_part,
)

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.importing import adapt


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
    with pytest.raises(ValueError, match="expected an entry 'decoder' with tensors, found discriminator, generator"):
        run_import(folder, tmp_path / "other", key="decoder")


def test_two_networks_in_one_state_dict_need_a_key(tmp_path):
    def make(model, seed):
        return {"state_dict": prefixed(model, "actor.") | prefixed(network(seed + 50), "critic.")}

    folder = save(tmp_path / "nets", make)
    with pytest.raises(ValueError, match=r"2 entries fit .* 'state_dict.actor' and 'state_dict.critic'"):
        run_import(folder, tmp_path / "ds")
    run_import(folder, tmp_path / "ds", key="state_dict.critic")
    torch.testing.assert_close(rebuilt(tmp_path / "ds"), expected(50, 51, 52))


def test_names_in_files_are_shown_short_and_printable(tmp_path):
    long, escape = "x" * 10_000, "criterion.\x1b[31mred"
    folder = save(tmp_path / "nets", lambda m, i: {**m.state_dict(), long: torch.ones(2), escape: torch.ones(2)})
    [note] = run_import(folder, tmp_path / "ds")["notes"]
    assert note.isprintable() and len(note) < 200 and "criterion.?[31mred" in note
    folder = save(tmp_path / "other", lambda m, i: {**m.state_dict(), f"layer1.{long}\n": torch.ones(2)})
    with pytest.raises(ValueError, match=r"'layer1.x+…', which the network does not have") as caught:
        run_import(folder, tmp_path / "none")
    assert len(str(caught.value)) < 500


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


def test_part_of_another_width_is_refused_also_with_the_rest(tmp_path):
    def make(_, seed):
        part = trained_part(seed)
        return {"net": {**part, "layer4.0.bn2.weight": torch.ones(7)}, "other": {"weight": torch.ones(3)}}

    part = save(tmp_path / "nets", make)
    torch.save(network(9).state_dict(), tmp_path / "rest.pth")
    with pytest.raises(ValueError, match=r"'layer4.0.bn2.weight': expected shape \(\d+,\), found \(7,\)"):
        run_import(part, tmp_path / "ds", rest=tmp_path / "rest.pth")
    part = save(tmp_path / "keyed", lambda m, i: {"net": trained_part(i), "loss": trained_part(i + 1)})
    run_import(part, tmp_path / "ds", rest=tmp_path / "rest.pth", key="loss")
    name = "layer4.0.bn2.weight"
    assert torch.equal(
        ParameterDataset(tmp_path / "ds").layout.unflatten(ParameterDataset(tmp_path / "ds").vectors()[0])[name],
        trained_part(1)[name],
    )


def test_another_network_of_the_family_is_named(tmp_path, monkeypatch):
    # Beside other programs, building the networks of a file takes longer.
    monkeypatch.setattr(adapt, "MAX_SECONDS", 120.0)
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
