import json
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import load_base_model, load_parameter_dataset
from pdiff_hf.data.importing.importer import import_checkpoints
from pdiff_hf.data.record import ParameterRecorder, ParameterRecorderCallback
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.layout import ParameterLayout
from small_datasets import snapshot

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def make_vit():
    images = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
    generator = torch.Generator().manual_seed(0)
    data = {"pixel_values": torch.rand(24, 1, 8, 8, generator=generator)}
    return ViTForImageClassification(ViTConfig(**SMALL, **images)), data


def make_bert():
    words = {"vocab_size": 20, "max_position_embeddings": 8, "num_labels": 3}
    data = {"input_ids": torch.randint(20, (24, 6), generator=torch.Generator().manual_seed(0))}
    return BertForSequenceClassification(BertConfig(**SMALL, **words)), data


def train(folder, make, recorder_folder=None, frozen=(), **options):
    """A real Trainer with evaluation and checkpoints at steps 2, 4, 6, 8, and the recorder beside it."""
    torch.manual_seed(0)
    model, inputs = make()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(name.startswith(prefix) for prefix in frozen)
    data = Dataset.from_dict({**{key: value.numpy() for key, value in inputs.items()}, "labels": [0, 1, 2] * 8})
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=6,
        num_train_epochs=2,
        learning_rate=1e-2,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        logging_steps=2,
        disable_tqdm=True,
        use_cpu=True,
        report_to=[],
        **options,
    )
    callbacks = []
    if recorder_folder is not None:
        recorder = ParameterRecorder(ParameterLayout.from_model(model), recorder_folder)
        callbacks = [ParameterRecorderCallback(recorder)]
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data.with_format("torch"),
        eval_dataset=data.with_format("torch"),
        callbacks=callbacks,
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
    )
    trainer.train()
    return trainer, inputs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(folder / "out", make_vit)
    return folder / "out"


@pytest.fixture
def output(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "out")


def run_import(*sources, out, **options):
    return import_checkpoints(sources, out, progress=False, **options)


@pytest.mark.parametrize("make", [make_vit, make_bert])
def test_imported_rows_are_those_that_the_callback_recorded(tmp_path, make):
    trainer, inputs = train(tmp_path / "out", make, tmp_path / "recorded")
    summary = run_import(tmp_path / "out", out=tmp_path / "ds")
    (imported, layout), (recorded, recorded_layout) = map(
        load_parameter_dataset, (tmp_path / "ds", tmp_path / "recorded")
    )
    assert layout.fingerprint == recorded_layout.fingerprint
    assert (recorded["step"][:].tolist(), imported["step"][:].tolist()) == (list(range(1, 9)), [2, 4, 6, 8])
    assert torch.equal(dataset_vectors(imported, layout), dataset_vectors(recorded, layout)[1::2])
    assert torch.equal(imported["epoch"][:], recorded["epoch"][1::2])

    network = load_base_model(tmp_path / "ds").build()
    layout.load_into(network, imported[-1]["parameters"])
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
        assert torch.allclose(network(**inputs).logits, expected, atol=1e-6)
        assert not torch.allclose(load_base_model(tmp_path / "ds").build()(**inputs).logits, expected, atol=1e-3)

    assert set(summary["metrics"]) == {"train_loss", "val_loss", "val_accuracy"} and summary["runs"] == ["out"]
    for position, step in enumerate([2, 4, 6, 8]):
        logged = [entry for entry in trainer.state.log_history if entry["step"] == step]
        for name, key in {"train_loss": "loss", "val_loss": "eval_loss", "val_accuracy": "eval_accuracy"}.items():
            (value,) = (entry[key] for entry in logged if key in entry)
            assert imported[position][name].item() == pytest.approx(value, rel=1e-6)
    stats = json.loads((tmp_path / "ds" / "stats.json").read_text())
    assert [row["source"] for row in stats["metadata"]["import"]["rows"]] == [f"checkpoint-{n}" for n in (2, 4, 6, 8)]


def test_selection_of_a_fine_tuned_head_is_imported_with_the_frozen_rest(tmp_path):
    trainer, inputs = train(tmp_path / "out", make_vit, frozen=["vit."])
    run_import(tmp_path / "out", out=tmp_path / "ds", select="head")
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert layout.names == ("classifier.weight", "classifier.bias")
    network = load_base_model(tmp_path / "ds").build()
    layout.load_into(network, dataset[-1]["parameters"])
    with torch.no_grad():
        assert torch.allclose(network(**inputs).logits, trainer.model.eval()(**inputs).logits, atol=1e-6)


def test_checkpoint_folders_listed_one_by_one_are_one_run(output, tmp_path):
    summary = run_import(*sorted(output.glob("checkpoint-*")), out=tmp_path / "ds")
    assert summary["runs"] == ["out"] and summary["num_checkpoints"] == 4


def test_two_outputs_are_two_runs(trained, tmp_path):
    folders = [shutil.copytree(trained, tmp_path / "a" / "out"), shutil.copytree(trained, tmp_path / "b" / "out")]
    with pytest.warns(UserWarning, match="4 of 8 checkpoints are exact copies"):
        summary = run_import(*folders, out=tmp_path / "ds")
    assert summary["runs"] == ["a/out", "b/out"]


def split_into_shards(folder):
    state = load_file(folder / "model.safetensors")
    names, weight_map = sorted(state), {}
    for number in (1, 2):
        shard = f"model-{number:05d}-of-00002.safetensors"
        part = {name: state[name] for name in names[number - 1 :: 2]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_shards_and_pytorch_files_give_the_same_rows(output, tmp_path):
    run_import(output, out=tmp_path / "whole")
    split_into_shards(output / "checkpoint-4")
    last = output / "checkpoint-8"
    torch.save(load_file(last / "model.safetensors"), last / "pytorch_model.bin")
    (last / "model.safetensors").unlink()
    run_import(output, out=tmp_path / "ds")
    whole, ds = (dataset_vectors(*load_parameter_dataset(tmp_path / name)) for name in ("whole", "ds"))
    assert torch.equal(whole, ds)


def test_state_that_is_missing_leaves_the_metrics_out(output, tmp_path):
    for folder in output.iterdir():
        (folder / "trainer_state.json").unlink()
    assert run_import(output, out=tmp_path / "ds")["metrics"] == []
    assert load_parameter_dataset(tmp_path / "ds")[0]["step"][:].tolist() == [2, 4, 6, 8]


def test_step_that_was_not_evaluated_has_no_metrics(output, tmp_path):
    for step in (4, 8):
        file = output / f"checkpoint-{step}" / "trainer_state.json"
        edit(file, lambda s, step=step: {**s, "log_history": [e for e in s["log_history"] if e["step"] != step]})
    run_import(output, out=tmp_path / "ds")
    accuracies = load_parameter_dataset(tmp_path / "ds")[0].with_format(None)["val_accuracy"][:]
    assert [accuracy is None for accuracy in accuracies] == [False, True, False, True]


def test_folder_without_config_needs_a_base_model(output, tmp_path):
    config = ViTForImageClassification.from_pretrained(output / "checkpoint-2").config
    for folder in output.iterdir():
        (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"expected a config.json beside it"):
        run_import(output, out=tmp_path / "ds")
    base = BaseModel.transformers(config, "ViTForImageClassification")
    assert run_import(output, out=tmp_path / "ds", base_model=base)["num_checkpoints"] == 4


def edit(file, change):
    values = json.loads(file.read_text())
    file.write_text(json.dumps(change(values) or values))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def log(values, **entry):
    values["log_history"].append({"step": 8, **entry})


BIAS = "classifier.bias"
# In the file; in the network it has another name.
QUERY = "vit.encoder.layer.0.attention.attention.query.weight"
INDEX = "model.safetensors.index.json"
BROKEN = {
    "other number of heads": (
        lambda f: edit(f / "config.json", lambda c: c.update(num_attention_heads=4)),
        r"config.json is not that of .*'num_attention_heads': 2 and 4",
    ),
    "other number of classes": (
        lambda f: edit_weights(f, lambda s: s.update({BIAS: torch.ones(5)})),
        r"tensor 'classifier.bias': expected shape \(3,\), found \(5,\)",
    ),
    "missing tensor": (lambda f: edit_weights(f, lambda s: s.pop(BIAS)), "tensor 'classifier.bias' is missing"),
    "unexpected tensor": (
        lambda f: edit_weights(f, lambda s: s.update(extra=torch.ones(5))),
        "tensor 'extra' is unexpected",
    ),
    "one tensor of another type": (
        lambda f: edit_weights(f, lambda s: s.update({BIAS: torch.ones(3).half()})),
        r"tensor 'classifier\.bias': expected dtype float32, found torch.float16",
    ),
    "other dtype": (
        lambda f: edit_weights(f, lambda s: s.update({k: v.half() for k, v in s.items()})),
        "expected dtype float32, found torch.float16",
    ),
    "quantized": (
        lambda f: edit_weights(f, lambda s: s.update({QUERY: s[QUERY].to(torch.int8)})),
        "expected floating-point values, found torch.int8; quantized",
    ),
    "NaN": (
        lambda f: edit_weights(f, lambda s: s.update({BIAS: torch.full((3,), torch.nan)})),
        "tensor 'classifier.bias' has a NaN",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "expected model.safetensors or pytorch_model.bin"),
    "adapter": (
        lambda f: [
            (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
            (f / "adapter_config.json").write_text("{}"),
        ],
        "merge the adapter",
    ),
    "lost shard": (
        lambda f: [split_into_shards(f), (f / "model-00002-of-00002.safetensors").unlink()],
        "names the shard 'model-00002-of-00002.safetensors', found no such",
    ),
    "shard elsewhere": (
        lambda f: [split_into_shards(f), edit(f / INDEX, lambda i: {"weight_map": {"a": "../checkpoint-2/x.bin"}})],
        r"names the shard '../checkpoint-2/x.bin', found no such",
    ),
    "empty index": (
        lambda f: [split_into_shards(f), edit(f / INDEX, lambda i: {"weight_map": {}})],
        "found it empty",
    ),
    "index without map": (lambda f: [split_into_shards(f), edit(f / INDEX, lambda i: {"a": 1})], "'weight_map'"),
    "index is no JSON": (
        lambda f: [split_into_shards(f), (f / INDEX).write_text("{")],
        "index.json is not valid JSON",
    ),
    "tensor in two shards": (
        lambda f: [
            split_into_shards(f),
            shutil.copy(f / "model-00001-of-00002.safetensors", f / "b.safetensors"),
            edit(f / INDEX, lambda i: i["weight_map"].update(a="b.safetensors")),
        ],
        "is in another shard too",
    ),
    "state is no JSON": (lambda f: (f / "trainer_state.json").write_text("]"), "trainer_state.json is not valid JSON"),
    "state without history": (
        lambda f: edit(f / "trainer_state.json", lambda s: {"global_step": 8}),
        "expected the state of a Trainer",
    ),
    "state of another step": (
        lambda f: edit(f / "trainer_state.json", lambda s: s.update(global_step=7)),
        "expected global_step 8, .*found 7",
    ),
    "NaN loss": (
        lambda f: edit(f / "trainer_state.json", lambda s: log(s, loss=float("nan"))),
        "trainer_state.json: 'loss' is nan",
    ),
    "percent": (
        lambda f: edit(f / "trainer_state.json", lambda s: log(s, eval_accuracy=93.5)),
        "'eval_accuracy' is 93.5, expected a fraction",
    ),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "expected an object, found list"),
    "config without architecture": (
        lambda f: edit(f / "config.json", lambda c: c.pop("architectures") and c),
        "expected one of 'architectures'",
    ),
    "config of an unknown model": (
        lambda f: edit(f / "config.json", lambda c: c.update(model_type="nothing")),
        "transformers does not take this config of a 'nothing'",
    ),
    "config of another type": (
        lambda f: edit(f / "config.json", lambda c: c.update(hidden_size="wide")),
        "transformers does not take this config of a 'vit'",
    ),
    "config with an import path": (
        lambda f: edit(f / "config.json", lambda c: c.update(architectures=["os.system"])),
        "config.json is not that of|has no model 'os.system'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_malformed_output_is_refused_in_one_line(output, tmp_path, name):
    damage, message = BROKEN[name]
    damage(output / "checkpoint-8")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        run_import(output, out=tmp_path / "ds")
    assert len(str(caught.value).splitlines()) == 1 and "checkpoint-8" in str(caught.value)
    assert snapshot(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["os.system"]}, "has no model 'os.system'"),
        ({"num_attention_heads": 0}, "cannot be built with its arguments"),
        ({"architectures": ["BertModel"]}, "BertModel expects a BertConfig"),
        ({"backbone": "../elsewhere"}, "may not take 'backbone'"),
    ],
)
def test_config_that_cannot_be_built_is_refused(output, tmp_path, change, message):
    for folder in output.iterdir():
        edit(folder / "config.json", lambda c: c.update(change))
    with pytest.raises(ValueError, match=message) as caught:
        run_import(output, out=tmp_path / "ds")
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_networks_of_several_types_keep_them(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        model, _ = make_vit()
        model.bfloat16()
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.float()
        model.save_pretrained(folder)
    import_checkpoints(folders, tmp_path / "ds", progress=False)
    network = load_base_model(tmp_path / "ds").build()
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    layout.load_into(network, dataset_vectors(dataset, layout)[1])
    for name, tensor in model.state_dict().items():
        assert network.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(network.state_dict()[name], tensor)
    assert {spec.dtype for spec in layout.tensors} == {"bfloat16", "float32"}
