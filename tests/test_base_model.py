import copy
import json
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from pdiff_hf.base_model import WEIGHTS, BaseModel
from pdiff_hf.files import sha256_file
from pdiff_hf.forward import forward_logits

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT = ViTConfig(**TINY, image_size=8, patch_size=4, num_labels=3)
GPT2 = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
REFERENCES = {
    "timm": BaseModel.timm("resnet18", num_classes=3),
    "transformers": BaseModel.transformers(VIT, "ViTForImageClassification"),
    "tied": BaseModel.transformers(GPT2, "GPT2LMHeadModel"),
    "imported": BaseModel.imported("pdiff_hf.tasks.networks:mlp3", in_features=4, hidden=(3, 2), num_classes=2),
}

FACTORIES = """
from torch import nn

def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model

def shared_memory():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    return model

def no_module():
    return 3

def crash():
    raise AssertionError("was called")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "factories_of_a_test.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "factories_of_a_test"
    sys.modules.pop("factories_of_a_test", None)


def mlp(seed=0):
    torch.manual_seed(seed)
    return REFERENCES["imported"].build()


def saved_mlp(folder):
    return REFERENCES["imported"].save_weights(mlp(), folder)


@pytest.mark.parametrize("name", REFERENCES)
def test_saved_weights_are_built_again_to_the_bit(name, tmp_path):
    torch.manual_seed(0)
    model = REFERENCES[name].build()
    reference = REFERENCES[name].save_weights(model, tmp_path)
    again = BaseModel.from_dict(json.loads(json.dumps(reference.to_dict())), tmp_path).build()
    assert not again.training
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    assert (tmp_path / WEIGHTS).is_file()
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_survives_json(name):
    again = BaseModel.from_dict(json.loads(json.dumps(REFERENCES[name].to_dict())))
    assert again == REFERENCES[name]


def test_root_is_neither_compared_nor_serialised(tmp_path):
    reference = saved_mlp(tmp_path / "a")
    assert reference.copy_to(tmp_path / "b") == reference
    assert "root" not in reference.to_dict()


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    reference = REFERENCES["tied"].save_weights(REFERENCES["tied"].build(), tmp_path)
    assert "transformer.wte.weight" in load_file(tmp_path / WEIGHTS)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    model = reference.build()
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("factory", ["tied", "shared_memory"])
def test_shared_weights_of_plain_torch(factory, tmp_path, package):
    base = BaseModel.imported(f"{package}:{factory}")
    model = base.build(trusted_imports=[package])
    reference = base.save_weights(model.state_dict(), tmp_path)
    assert set(load_file(tmp_path / WEIGHTS)) == {"0.weight", "0.bias", "1.bias"}
    again = reference.build(trusted_imports=[package])
    assert torch.equal(again[0].weight, model[0].weight)
    assert again[0].weight.data_ptr() == again[1].weight.data_ptr()


def test_views_of_one_storage_are_stored_apart(tmp_path):
    flat = torch.arange(29.0)
    state = {name: tensor.clone() for name, tensor in mlp().state_dict().items()}
    start = 0
    for name, tensor in state.items():
        state[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    reference = REFERENCES["imported"].save_weights(state, tmp_path)
    for name, tensor in reference.build().state_dict().items():
        assert torch.equal(tensor, state[name])


def test_weights_are_built_in_the_type_they_were_saved_in(tmp_path):
    model = REFERENCES["timm"].build().bfloat16()
    again = REFERENCES["timm"].save_weights(model, tmp_path).build()
    assert again.conv1.weight.dtype == torch.bfloat16
    assert torch.equal(again.conv1.weight, model.conv1.weight)
    assert again.bn1.num_batches_tracked.dtype == torch.int64


def test_parameters_stay_trainable_and_frozen_as_the_factory_made_them(tmp_path):
    model = saved_mlp(tmp_path).build()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_saving_does_not_alter_the_model(tmp_path):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    saved_mlp(tmp_path).build()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_pretrained_weights_are_not_downloaded_when_there_are_own_ones(tmp_path, monkeypatch):
    model = timm.create_model("resnet18", num_classes=3)
    reference = BaseModel.timm("resnet18", pretrained=True, num_classes=3).save_weights(model, tmp_path)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *a, **k: pytest.fail("would download"))
    assert torch.equal(reference.build().fc.weight, model.fc.weight)


def test_copy_to_another_folder_is_self_contained(tmp_path):
    reference = saved_mlp(tmp_path / "a").copy_to(tmp_path / "b")
    (tmp_path / "a" / WEIGHTS).unlink()
    assert torch.equal(reference.build()[1].weight, mlp()[1].weight)


def test_copy_onto_itself_keeps_the_file(tmp_path):
    reference = saved_mlp(tmp_path)
    assert reference.copy_to(tmp_path / "base" / "..").build()


def test_copy_of_a_damaged_file_keeps_the_target(tmp_path):
    good = saved_mlp(tmp_path / "good")
    bad = saved_mlp(tmp_path / "bad")
    (tmp_path / "bad" / WEIGHTS).write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        bad.copy_to(tmp_path / "good")
    assert good.build()


def test_symbolic_link_as_in_the_hub_cache_is_followed(tmp_path):
    reference = saved_mlp(tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).rename(tmp_path / "blob")
    (tmp_path / "a" / WEIGHTS).symlink_to(tmp_path / "blob")
    assert reference.build()


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_weights_of_another_hash_are_refused(tmp_path, damage):
    reference = saved_mlp(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[:-4] + (b"" if damage == "truncated" else b"abcd"))
    with pytest.raises(ValueError, match=r"model\.safetensors was changed or is damaged: expected sha256"):
        reference.build()


def test_missing_weights_are_named(tmp_path):
    reference = saved_mlp(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"expected weights at .*model\.safetensors, found none"):
        reference.build()


def test_truncated_safetensors_with_the_right_hash_is_refused(tmp_path):
    values = saved_mlp(tmp_path).to_dict()
    path = tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a valid safetensors file"):
        BaseModel.from_dict({**values, "sha256": sha256_file(path)}, tmp_path).build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("1.bias"), "lacks tensor '1.bias'"),
        (lambda s: s.update(other=torch.zeros(1)), "tensor 'other' is none of"),
        (lambda s: s.update({"1.bias": torch.zeros(9)}), r"'1.bias': expected torch.float32 \(3,\), found .*\(9,\)"),
        (lambda s: s.update({"1.bias": torch.zeros(3, dtype=torch.int64)}), "'1.bias': expected torch.float32"),
    ],
)
def test_weights_of_another_architecture_are_named(tmp_path, change, message):
    state = mlp().state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        REFERENCES["imported"].save_weights(state, tmp_path).build()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "base/../../x", "C:\\x", "..\\x", "c:x", "", "."])
def test_paths_out_of_the_folder_are_refused(tmp_path, path):
    values = {**saved_mlp(tmp_path).to_dict(), "weights": path}
    with pytest.raises(ValueError, match="inside its own folder"):
        BaseModel.from_dict(values, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"library": "pickle"},
        {"name": 3},
        {"kwargs": [1]},
        {"kwargs": {"f": object()}},
        {"sha256": None},
        {"weights": None},
        {"more": 1},
    ],
)
def test_malformed_references_are_refused(tmp_path, change):
    with pytest.raises(ValueError, match="base model"):
        BaseModel.from_dict({**saved_mlp(tmp_path).to_dict(), **change}, tmp_path)


@pytest.mark.parametrize(
    "name", ["os:system", "pdiff_hf.files:write_json", "pdiff_hf.tasks.networks_evil:f", "pdiff_hf_evil.x:f"]
)
def test_imports_outside_of_the_allow_list_are_refused(name):
    with pytest.raises(ValueError, match="trusted_imports"):
        BaseModel.imported(name).build()


def test_a_module_is_no_factory_however_trusted():
    with pytest.raises(ValueError, match=r"expected a factory 'package\.module:name' or 'file\.py:name', found 'os'"):
        BaseModel.imported("os").build(trusted_imports=["os"])


def test_untrusted_module_is_not_even_imported(package):
    with pytest.raises(ValueError, match=rf"trusted_imports=\['{package}:tied'\]"):
        BaseModel.imported(f"{package}:tied").build(trusted_imports=["factories_of", f"{package}:crash"])
    assert package not in sys.modules


@pytest.mark.parametrize("trusted", ["factories_of_a_test", "factories_of_a_test:tied"])
def test_trusted_imports_are_built(package, trusted):
    assert BaseModel.imported(f"{package}:tied").build(trusted_imports=[trusted])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("none", {}, "cannot import"),
        ("no_module", {}, "expected an nn.Module"),
        ("tied", {"unknown": 1}, "does not take its arguments"),
    ],
)
def test_factories_that_make_no_model_are_named(package, name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        BaseModel.imported(f"{package}:{name}", **kwargs).build(trusted_imports=[package])


@pytest.mark.parametrize("name", ["resnet17", "local-dir:/tmp", "hf-hub:timm/resnet18.a1_in1k"])
def test_timm_names_outside_of_its_registry_are_refused(name):
    with pytest.raises(ValueError, match="has no model"):
        BaseModel.timm(name).build()


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_timm_arguments_that_name_files_are_refused(argument):
    with pytest.raises(ValueError, match=f"may not take '{argument}'"):
        BaseModel.timm("resnet18", **{argument: "/x"})


@pytest.mark.parametrize("name", ["AutoModel", "logging", "PreTrainedTokenizerFast", "ViTForEverything", "__file__"])
def test_transformers_names_that_are_no_models_are_refused(name):
    with pytest.raises(ValueError, match="has no model"):
        BaseModel.transformers(VIT, name).build()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"config": {"hidden_size": 3}},
        {"config": {"model_type": "timm_backbone", "backbone": "resnet18"}},
        {"config": {"model_type": "upernet", "backbone_config": {"model_type": "timm_backbone", "backbone": "x"}}},
    ],
)
def test_transformers_configs_that_are_incomplete_or_name_backbones_are_refused(kwargs):
    with pytest.raises(ValueError, match="base model"):
        BaseModel("transformers", "ViTForImageClassification", kwargs)


def test_config_of_another_architecture_is_refused():
    with pytest.raises(ValueError, match="expects a ViTConfig, found BertConfig"):
        BaseModel.transformers(BertConfig(**TINY), "ViTForImageClassification").build()


def test_labels_of_a_transformers_config_survive():
    config = ViTConfig(
        **TINY, image_size=8, patch_size=4, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}
    )
    assert BaseModel.transformers(config, "ViTForImageClassification").build().config.id2label == {0: "cat", 1: "dog"}


def test_state_dict_without_weights_is_refused():
    with pytest.raises(ValueError, match="carries no weights"):
        REFERENCES["timm"].state_dict()


def test_forward_logits_of_tensors_and_model_outputs():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    model = ViTForImageClassification(VIT).eval()
    assert isinstance(model(images), ImageClassifierOutput)
    assert torch.equal(forward_logits(model, images), model(images).logits)
    assert forward_logits(nn.Flatten(), images).shape == (2, 192)


def test_language_model_head_is_tied_at_build():
    assert isinstance(REFERENCES["tied"].build(), GPT2LMHeadModel)


def test_files_of_others_are_read(tmp_path):
    model = mlp()
    (tmp_path / "base").mkdir()
    save_file(dict(model.state_dict()), tmp_path / "base" / "w.safetensors")
    sha256 = sha256_file(tmp_path / "base" / "w.safetensors")
    values = {**REFERENCES["imported"].to_dict(), "weights": "base/w.safetensors", "sha256": sha256}
    assert torch.equal(BaseModel.from_dict(values, tmp_path).build()[1].weight, model[1].weight)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_from_the_hub_is_refused(key):
    config = {"model_type": "vit", "num_hidden_layers": 1}
    with pytest.raises(ValueError, match="may not take attention from the Hub"):
        BaseModel("transformers", "ViTModel", {"config": {**config, key: "kernels-community/flash-attn"}})
    BaseModel("transformers", "ViTModel", {"config": {**config, key: "sdpa"}})
