import copy
import json

import pytest
import timm
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from pdiff_hf.layout import ParameterLayout, TensorSpec

TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4, affine=False)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.GroupNorm(2, 4)
        self.fc = nn.Linear(4, 3)
        self.register_buffer("cache", torch.zeros(3), persistent=False)


def make(name):
    torch.manual_seed(0)
    if name == "plain":
        return Plain()
    if name == "resnet18":
        return timm.create_model("resnet18", num_classes=5)
    if name == "vit":
        return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    if name == "convnext":
        return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=5)
    if name == "hf_vit":
        return ViTForImageClassification(ViTConfig(**TINY, image_size=8, patch_size=4, num_labels=5))
    if name == "bert":
        return BertForMaskedLM(BertConfig(**TINY, vocab_size=20))
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8))


MODELS = ["plain", "resnet18", "vit", "convnext", "hf_vit", "bert", "gpt2"]


@pytest.fixture(scope="module")
def models():
    return {name: make(name) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_all_takes_every_parameter_once(models, name):
    model = models[name]
    layout = ParameterLayout.from_model(model, "all")
    assert layout.names == tuple(n for n, _ in model.named_parameters())
    assert layout.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "select", "expected"),
    [
        ("plain", "last_norms:1", ["norm.weight", "norm.bias"]),
        ("plain", "last_norms:2", ["bn1.weight", "bn1.bias", "norm.weight", "norm.bias"]),
        (
            "resnet18",
            "last_norms:2",
            ["layer4.1.bn1.weight", "layer4.1.bn1.bias", "layer4.1.bn2.weight", "layer4.1.bn2.bias"],
        ),
        ("vit", "last_norms:2", ["blocks.1.norm2.weight", "blocks.1.norm2.bias", "norm.weight", "norm.bias"]),
        ("convnext", "last_norms:1", ["head.norm.weight", "head.norm.bias"]),
        ("hf_vit", "last_norms:1", ["vit.layernorm.weight", "vit.layernorm.bias"]),
        ("plain", "head", ["fc.weight", "fc.bias"]),
        ("resnet18", "head", ["fc.weight", "fc.bias"]),
        ("convnext", "head", ["head.fc.weight", "head.fc.bias"]),
        ("hf_vit", "head", ["classifier.weight", "classifier.bias"]),
        ("gpt2", "head", ["transformer.wte.weight"]),
        ("gpt2", "lm_head.*", ["transformer.wte.weight"]),
        ("plain", "fc.*", ["fc.weight", "fc.bias"]),
        ("plain", ["fc.*", "scale", "fc.bias"], ["scale", "fc.weight", "fc.bias"]),
    ],
)
def test_selection(models, name, select, expected):
    assert list(ParameterLayout.from_model(models[name], select).names) == expected


def test_head_of_a_tied_masked_language_model_holds_the_embedding_once(models):
    names = ParameterLayout.from_model(models["bert"], "head").names
    assert "bert.embeddings.word_embeddings.weight" in names
    assert "cls.predictions.transform.dense.weight" in names
    assert "cls.predictions.decoder.weight" not in names
    assert len([name for name in names if name.startswith("bert.")]) == 1


def test_head_of_a_distilled_timm_model_has_both_classifiers():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=3)
    names = ParameterLayout.from_model(model, "head").names
    assert set(names) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_single_module_is_its_own_head():
    assert ParameterLayout.from_model(nn.Linear(2, 3), "head").names == ("weight", "bias")


@pytest.mark.parametrize(
    "model",
    [
        lambda: ViTModel(ViTConfig(**TINY, image_size=8, patch_size=4), add_pooling_layer=False),
        lambda: timm.create_model("resnet18", num_classes=0),
        lambda: nn.Conv2d(1, 1, 1),
    ],
)
def test_model_without_classifier_has_no_head(model):
    with pytest.raises(ValueError, match="'head' finds no classifier"):
        ParameterLayout.from_model(model(), "head")


def test_frozen_parameters_are_selected_like_others():
    model = Plain().requires_grad_(False)
    assert ParameterLayout.from_model(model) == ParameterLayout.from_model(Plain())


def test_buffers_of_selected_modules_only(models):
    layout = ParameterLayout.from_model(models["resnet18"], "last_norms:1", buffers=True)
    assert [(s.name.removeprefix("layer4.1.bn2."), s.transform) for s in layout.tensors] == [
        ("weight", "identity"),
        ("bias", "identity"),
        ("running_mean", "identity"),
        ("running_var", "log"),
    ]


def test_all_with_buffers_is_every_floating_point_tensor_of_the_state_dict(models):
    model = models["plain"]
    layout = ParameterLayout.from_model(model, "all", buffers=True)
    assert list(layout.names) == [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    assert "bn2.running_var" in layout.names
    assert not any("num_batches_tracked" in name or "cache" in name for name in layout.names)


def test_integer_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.arange(3), requires_grad=False)
    assert ParameterLayout.from_model(model).names == ("weight", "bias")


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact_to_the_bit(models, name):
    model = models[name]
    layout = ParameterLayout.from_model(model, "all", buffers=True)
    vector = layout.flatten(model)
    assert vector.dtype == torch.float32
    assert vector.shape == (layout.num_parameters,)
    state = model.state_dict()
    for key, tensor in layout.unflatten(vector).items():
        assert torch.equal(tensor, state[key])
        assert tensor.shape == state[key].shape
    assert torch.equal(layout.flatten(layout.unflatten(vector)), vector)


def test_every_bit_pattern_of_float32_survives():
    bits = torch.tensor([0, -(2**31), 1, 0x7F800000, 0x7F7FFFFF, 0x7FC12345, -1], dtype=torch.int32)
    layout = ParameterLayout((TensorSpec("a", (7,), 0),))
    back = layout.unflatten(layout.flatten({"a": bits.view(torch.float32)}))["a"]
    assert torch.equal(back.view(torch.int32), bits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_round_trip_is_exact(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-(2**15), 2**15, (4096,), generator=generator).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    model = nn.ParameterDict({"a": nn.Parameter(values), "b": nn.Parameter(torch.ones(2))})
    layout = ParameterLayout.from_model(model)
    state = layout.unflatten(layout.flatten(model))
    assert state["a"].dtype == dtype
    assert state["b"].dtype == torch.float32
    assert torch.equal(state["a"].view(torch.int16), values.view(torch.int16))


def test_flatten_copies_and_unflatten_views(models):
    model = copy.deepcopy(models["plain"])
    layout = ParameterLayout.from_model(model)
    vector = layout.flatten(model)
    with torch.no_grad():
        model.fc.weight.zero_()
    assert layout.unflatten(vector)["fc.weight"].abs().sum() > 0
    layout.unflatten(vector)["fc.weight"].zero_()
    assert torch.equal(vector, layout.flatten(model))


def test_batch_unflatten_equals_row_by_row(models):
    layout = ParameterLayout.from_model(models["plain"])
    vectors = torch.randn(3, layout.num_parameters, generator=torch.Generator().manual_seed(0))
    batch = layout.unflatten(vectors)
    for row in range(3):
        for name, tensor in layout.unflatten(vectors[row]).items():
            assert torch.equal(batch[name][row], tensor)
    assert batch["scale"].shape == (3,)
    assert layout.unflatten(vectors[0])["scale"].shape == ()


def test_load_into_changes_the_selection_and_nothing_else(models):
    model = copy.deepcopy(models["resnet18"]).eval()
    before = copy.deepcopy(model.state_dict())
    layout = ParameterLayout.from_model(model, "last_norms:2", buffers=True)
    vector = torch.rand(layout.num_parameters, generator=torch.Generator().manual_seed(0))
    parameters = dict(model.named_parameters())
    layout.load_into(model, vector)
    assert torch.equal(layout.flatten(model), vector)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in layout.names), name


def test_load_into_keeps_tied_weights_tied(models):
    model = copy.deepcopy(models["gpt2"])
    layout = ParameterLayout.from_model(model, "lm_head.weight")
    layout.load_into(model, torch.arange(layout.num_parameters, dtype=torch.float32))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.flatten()[5] == 5


def test_tied_weights_of_plain_torch_appear_under_their_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert ParameterLayout.from_model(model).names == ("0.weight", "0.bias", "2.bias")
    assert ParameterLayout.from_model(model, "2.*").names == ("0.weight", "2.bias")
    assert ParameterLayout.from_model(model, "head").names == ("0.weight", "2.bias")


@pytest.mark.parametrize("select", ["all", "last_norms:2", "head"])
def test_json_round_trip_keeps_the_fingerprint(models, select):
    layout = ParameterLayout.from_model(models["plain"], select, buffers=True)
    values = json.loads(json.dumps(layout.to_dict()))
    assert set(values) == {"schema", "num_parameters", "fingerprint", "tensors"}
    again = ParameterLayout.from_dict(values)
    assert again == layout
    assert again.fingerprint == layout.fingerprint == values["fingerprint"]


def test_fingerprint_depends_on_every_field():
    base = ParameterLayout((TensorSpec("a", (2, 3), 0),))
    others = [("b", (2, 3), "float32", "identity"), ("a", (3, 2), "float32", "identity")]
    others += [("a", (2, 3), "float16", "identity"), ("a", (2, 3), "float32", "log")]
    prints = {ParameterLayout((TensorSpec(n, s, 0, d, t),)).fingerprint for n, s, d, t in others}
    assert len(prints | {base.fingerprint}) == 5


@pytest.mark.parametrize(
    "tamper",
    [
        lambda d: d["tensors"][0].update(name="other"),
        lambda d: d["tensors"][1].update(transform="log"),
        lambda d: d.update(num_parameters=1),
        lambda d: d.update(fingerprint="0" * 64),
        lambda d: d["tensors"][1].update(offset=1),
        lambda d: d["tensors"][1].update(name=d["tensors"][0]["name"]),
        lambda d: d["tensors"][0].update(shape=[-1]),
        lambda d: d["tensors"][0].update(shape=None),
        lambda d: d["tensors"][0].update(dtype="float64"),
        lambda d: d["tensors"][0].update(dtype=["float32"]),
        lambda d: d["tensors"][0].update(transform="sqrt"),
        lambda d: d["tensors"][0].pop("shape"),
        lambda d: d["tensors"].clear(),
        lambda d: d.update(tensors=3),
        lambda d: d.update(schema=2),
        lambda d: d.pop("schema"),
    ],
)
def test_tampered_json_is_refused(tamper):
    values = ParameterLayout.from_model(nn.Linear(2, 3)).to_dict()
    tamper(values)
    with pytest.raises(ValueError, match="layout"):
        ParameterLayout.from_dict(values)


def test_json_that_is_no_dict_is_refused():
    with pytest.raises(ValueError, match="malformed"):
        ParameterLayout.from_dict([])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(3, 2)}, r"tensor 'bias': expected shape \(3,\), found no such tensor"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
            r"tensor 'weight': expected shape \(3, 2\), found \(2, 3\)",
        ),
        (
            {"weight": torch.zeros(3, 2), "bias": torch.zeros(3, dtype=torch.float64)},
            r"tensor 'bias': expected dtype float32, found torch.float64",
        ),
        (nn.Linear(2, 4), r"tensor 'weight': expected shape \(3, 2\), found \(4, 2\)"),
    ],
)
def test_state_that_does_not_fit_is_named(state, message):
    layout = ParameterLayout.from_model(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=message):
        layout.flatten(state)
    with pytest.raises(ValueError, match=message):
        layout.check(state)


def test_load_into_a_model_that_does_not_fit_changes_nothing():
    layout = ParameterLayout.from_model(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'1\.weight'"):
        layout.load_into(model, torch.zeros(layout.num_parameters))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("shape", [(8,), (2, 10), (1, 1, 9), ()])
def test_vector_of_another_length_is_refused(shape):
    layout = ParameterLayout.from_model(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="expected a vector of shape"):
        layout.unflatten(torch.zeros(shape))


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("fc.wieght", r"'fc.wieght' matches no parameter.*conv.weight"),
        (["fc.*", "nothing.*"], r"'nothing.\*' matches no parameter"),
        ("last_norms:3", "at least 3 normalisation layers.*found 2"),
        ("last_norms:0", "positive number"),
        ("last_norms:two", "positive number"),
        ([], "selects none.*conv.weight"),
    ],
)
def test_selection_that_finds_nothing_says_what_there_is(models, select, message):
    with pytest.raises(ValueError, match=message):
        ParameterLayout.from_model(models["plain"], select)


def test_locate_names_the_tensor_of_a_position(models):
    layout = ParameterLayout.from_model(models["plain"])
    for spec in layout.tensors:
        assert layout.locate(spec.offset) == spec.name
        assert layout.locate(spec.offset + spec.numel - 1) == spec.name


@pytest.mark.parametrize("buffers", [False, True])
def test_freeze_rest_leaves_the_layout_to_be_trained(buffers):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Dropout()).train()
    layout = ParameterLayout.from_model(model, "last_norms:1", buffers)
    layout.freeze_rest(model)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["2.weight", "2.bias"]
    # Running statistics that are recorded follow the data, all others do not.
    assert [module.training for module in model] == [False, False, buffers, False]
    assert layout.followed_modules == ({"2"} if buffers else set())
    ParameterLayout.from_model(model).freeze_rest(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
