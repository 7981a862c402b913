import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from factories import NETWORK, make_network, make_pipeline
from pdiff_hf import identity
from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.identity import NetworkIdentity, check_same_network, read_identity
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.pipelines.network_folder import write_networks

ADVICE = "give the right one"


def network(seed=0, width=3):
    """With a head, a counter and running statistics."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    model[1].running_mean.normal_()
    return model


def make(folder, model, select="head", buffers=False, where=None, **kwargs):
    base = BaseModel.imported("own:network", **kwargs).save_weights(model, folder)
    return NetworkIdentity.of(where or folder.name, ParameterLayout.from_model(model, select, buffers), base)


def compare(first, second):
    """Both ways, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same_network(first, second, ADVICE)
        check_same_network(second, first, ADVICE)


def recorded(side):
    """As a folder without weights says it."""
    values = json.loads(json.dumps(side.to_dict()))
    base = BaseModel.from_dict(values["base_model"])
    return NetworkIdentity(side.where, values["layout"], None, base, values["rest"])


def config(side):
    return NetworkIdentity.of_config(side.where, json.loads(json.dumps(side.to_config())))


FORMS = pytest.mark.parametrize("form", [lambda side: side, recorded, config], ids=["weights", "recorded", "config"])


@FORMS
@pytest.mark.parametrize("changed", ["0.weight", "1.running_mean"])
def test_another_rest_is_another_network(tmp_path, form, changed):
    """Running statistics that are not in the layout belong to it."""
    model, other = network(), network()
    other.state_dict()[changed][0] += 1
    first, second = make(tmp_path / "h0", model), make(tmp_path / "h1", other)
    with pytest.raises(ValueError, match=f"^h0 and h1 belong to different networks: .*; {ADVICE}.$") as caught:
        check_same_network(first, form(second), ADVICE)
    named = f"tensor '{changed}' of the base model differs;"
    assert (named in str(caught.value)) == (form(second).rest_tensors is not None)


def test_first_tensor_that_differs_is_named_and_the_others_counted(tmp_path):
    first, second = make(tmp_path / "h0", network(0)), make(tmp_path / "h1", network(1))
    message = r"tensor '0.bias' of the base model differs, and 2 more tensors do; give"
    with pytest.raises(ValueError, match=message):
        check_same_network(first, second, ADVICE)


@FORMS
def test_same_rest_is_the_same_network(tmp_path, form):
    """What is generated and counters play no part: two collections from one body."""
    model, other = network(), network()
    with torch.no_grad():
        other[2].weight.add_(1)
    other[1].num_batches_tracked += 7
    first, second = make(tmp_path / "h0", model), make(tmp_path / "h1", other)
    assert first.base_model.sha256 != second.base_model.sha256
    compare(first, form(second))


@FORMS
def test_whole_networks_from_different_initialisations_are_of_one_family(tmp_path, form):
    sides = [make(tmp_path / f"h{seed}", network(seed), "all", buffers=True) for seed in (0, 1)]
    compare(sides[0], form(sides[1]))
    # Without running statistics there is a rest, which differs.
    sides = [make(tmp_path / f"b{seed}", network(seed), "all") for seed in (0, 1)]
    with pytest.raises(ValueError, match="different networks"):
        check_same_network(sides[0], form(sides[1]), ADVICE)


def test_tied_tensors_are_one(tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
        model[1].weight = model[0].weight
        return model

    compare(make(tmp_path / "h0", tied(0), "all"), make(tmp_path / "h1", tied(1), "all"))
    first, second = make(tmp_path / "a0", tied(0)), make(tmp_path / "a1", tied(1))
    with pytest.raises(ValueError, match=r"tensor '0\.weight' of the base model differs;"):
        check_same_network(first, second, ADVICE)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (BaseModel.timm("resnet18", num_classes=3), "import and timm"),
        (BaseModel.imported("own:deeper", depth=2), "own:network and own:deeper"),
        (BaseModel.imported("own:network", depth=3), "'depth': 2 and 3"),
        (BaseModel.imported("own:network"), "'depth': 2 and its default"),
    ],
)
def test_another_architecture_is_named(tmp_path, other, difference):
    """Also where there is no rest that could differ."""
    first = make(tmp_path / "h0", network(), "all", buffers=True, depth=2)
    second = replace(first, where="h1", base_model=replace(other, weights="w", sha256="0" * 64))
    with pytest.raises(ValueError, match=f"h0 and h1 belong to different networks: base model: {difference}; give"):
        check_same_network(first, second, ADVICE)


def test_what_changes_no_network_is_not_compared(tmp_path):
    first = make(tmp_path / "h0", network(), dropout=0.1, pretrained=True)
    compare(first, make(tmp_path / "h1", network(), dropout=0.2))
    configs = [
        {"model_type": "vit", "hidden_size": 8, "transformers_version": str(n), **{f"new_{n}": 1}} for n in (1, 2)
    ]
    sides = [BaseModel("transformers", "ViTForImageClassification", {"config": values}) for values in configs]
    compare(*(replace(first, base_model=base) for base in sides))


@pytest.mark.parametrize(
    ("other", "select", "message"),
    [
        (network(width=5), "head", r"tensor '2.weight' has the shape \(2, 3\) in h0 and \(2, 5\) in h1"),
        (network(), "all", "tensor '0.weight' is generated in h1 and not in h0"),
        (network().half(), "head", "tensor '2.weight' has the dtype float32 in h0 and float16 in h1"),
        (network(), ["2.bias"], "tensor '2.weight' is generated in h0 and not in h1"),
    ],
)
def test_another_layout_names_the_first_tensor(tmp_path, other, select, message):
    first, second = make(tmp_path / "h0", network()), make(tmp_path / "h1", other, select)
    with pytest.raises(ValueError, match=f"h0 and h1 belong to different networks: {message}; give"):
        check_same_network(first, second, ADVICE)
    layout = second.layout
    write_networks(tmp_path / "g", layout, [layout.unflatten(torch.zeros(layout.num_parameters))], second.to_dict())
    # Tensors of a file have no order.
    with pytest.raises(ValueError, match=f"h0 and G .*: tensor '{message[8]}") as caught:
        check_same_network(first, read_identity(tmp_path / "g", "G"), ADVICE)
    assert message.partition("' ")[2].replace("h1", "G").replace("\\", "") in str(caught.value)


def test_same_tensors_in_another_order_are_another_layout(tmp_path):
    first = make(tmp_path / "h0", network())
    weight, bias = first.layout.tensors
    turned = ParameterLayout((replace(bias, offset=0), replace(weight, offset=bias.numel)))
    with pytest.raises(ValueError, match="their tensors are in another order; give"):
        check_same_network(first, NetworkIdentity.of("h1", turned), ADVICE)


def test_generated_tensors_in_another_order_are_another_layout(tmp_path):
    """Of generated networks, the order is not known."""
    first = make(tmp_path / "h0", network())
    states = [first.layout.unflatten(torch.zeros(first.layout.num_parameters))]
    write_networks(tmp_path / "g", first.layout, states, {"layout": "0" * 64})
    with pytest.raises(ValueError, match="their tensors are in another order; give"):
        check_same_network(first, read_identity(tmp_path / "g"), ADVICE)


def test_what_is_not_known_is_accepted_with_a_warning(tmp_path):
    first = make(tmp_path / "h0", network())
    nothing = NetworkIdentity("old", first.fingerprint)
    with pytest.warns(UserWarning, match="whether old and h0 belong .* cannot be checked: old has no base model"):
        check_same_network(first, nothing, ADVICE)
    lost = replace(first, where="lost", base_model=replace(first.base_model, sha256="0" * 64))
    with pytest.warns(UserWarning, match="lost has no weights of its base model"):
        check_same_network(first, lost, ADVICE)
    # Where nobody names a base model, or no rest is left, there is nothing to ask.
    compare(nothing, nothing)
    whole = make(tmp_path / "h1", network(), "all", buffers=True)
    compare(whole, NetworkIdentity("old", whole.fingerprint))
    compare(*[replace(first, base_model=BaseModel.timm("resnet18", pretrained=True))] * 2)


def test_equal_weights_are_not_read_and_others_once(tmp_path, monkeypatch):
    hashed = []
    own = identity._hash_tensor
    monkeypatch.setattr(identity, "_hash_tensor", lambda tensor: hashed.append(1) or own(tensor))
    monkeypatch.setattr(identity, "_TENSORS", {})
    first, second = make(tmp_path / "h0", network(0)), make(tmp_path / "h1", network(0))
    compare(first, second)
    assert not hashed
    other = make(tmp_path / "h2", network(1))
    for _ in range(2):
        with pytest.raises(ValueError, match="different networks"):
            check_same_network(first, other, ADVICE)
    assert len(hashed) == len(network().state_dict()) * 2
    # What is generated as a whole has no rest to read.
    hashed.clear()
    whole = [make(tmp_path / f"w{seed}", network(seed), "all", buffers=True) for seed in (3, 4)]
    compare(*whole)
    assert not hashed


def test_weights_on_the_hub_are_the_same_by_their_hash(tmp_path):
    """They need not be there to be compared."""
    first = make(tmp_path / "h0", network())
    sha = first.base_model.sha256
    remote = replace(
        first.base_model, repo="user/net", revision="0" * 40, weights="w.safetensors", sha256=sha, root=None
    )
    compare(first, replace(first, base_model=remote))


# Folders


def test_every_folder_says_which_network_it_is_of(tmp_path):
    pipeline = make_pipeline()
    layout = pipeline.layout
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(make_network(), tmp_path)
    pipeline.base_model = base
    pipeline.save_pretrained(tmp_path / "pipeline")
    save_parameter_dataset(torch.zeros(2, layout.num_parameters), layout, tmp_path / "dataset", base)
    states = [layout.unflatten(torch.zeros(layout.num_parameters))]
    write_networks(tmp_path / "generated", layout, states, pipeline.identity.to_dict())
    found = {name: read_identity(tmp_path / name) for name in ("pipeline", "dataset", "generated")}
    for name, side in found.items():
        assert (side.where, side.fingerprint) == (str(tmp_path / name), layout.fingerprint)
        assert side.base_model.sha256 == base.sha256 and side.rest == found["dataset"].rest
        compare(side, found["dataset"])
    assert read_identity(tmp_path / "pipeline" / "autoencoder").base_model is None
    with pytest.raises(ValueError, match="expected a parameter dataset, a pipeline or generated networks at"):
        read_identity(tmp_path / "base")


def test_folders_in_the_cache_of_the_hub_are_called_by_their_repository():
    assert identity.shown("/home/me/.cache/hub/models--user--my-net/snapshots/abc") == "user/my-net"
    assert identity.shown("/x/datasets--user--a--b/snapshots/abc/config") == "user/a--b"
    assert identity.shown("runs/pipeline") == "runs/pipeline"
