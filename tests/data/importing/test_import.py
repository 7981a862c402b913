import json
import os
import shutil
import struct

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import load_base_model, load_parameter_dataset
from pdiff_hf.data.importing.importer import import_checkpoints
from pdiff_hf.data.importing.references import parse_base_model, read_base_model
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, NETWORK, snapshot

BASE = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
HEAD = "5.*"


def make_state(seed=0):
    torch.manual_seed(seed)
    return mlp3(**NETWORK).state_dict()


def head_state(seed=0):
    """Of networks that differ in the last layer alone."""
    return make_state() | {name: tensor for name, tensor in make_state(seed).items() if name.startswith("5.")}


def make_folder(folder, names=("epoch_1", "epoch_2", "epoch_10"), suffix=".safetensors", state=make_state):
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        save = save_file if suffix == ".safetensors" else torch.save
        save(state(seed), folder / f"{name}{suffix}")
    return folder


def run_import(source, out, **options):
    return import_checkpoints(source, out, **{"base_model": BASE, "progress": False, **options})


def rows(folder):
    dataset, layout = load_parameter_dataset(folder)
    return dataset_vectors(dataset, layout), dataset[:], layout


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_folder_becomes_rows_in_natural_order(tmp_path, suffix):
    summary = run_import(make_folder(tmp_path / "nets", suffix=suffix), tmp_path / "ds")
    vectors, columns, layout = rows(tmp_path / "ds")
    assert layout.fingerprint == LAYOUT.fingerprint
    assert torch.equal(vectors, torch.stack([LAYOUT.flatten(make_state(seed)) for seed in range(3)]))
    assert (columns["epoch"].tolist(), columns["step"].tolist(), columns["run"]) == (
        [1, 2, 10],
        [0, 1, 2],
        ["nets"] * 3,
    )
    assert summary == {
        "num_checkpoints": 3,
        "num_parameters": LAYOUT.num_parameters,
        "runs": ["nets"],
        "metrics": [],
        "num_copies": 0,
        "notes": [],
    }
    found = json.loads((tmp_path / "ds" / "stats.json").read_text())["metadata"]["import"]
    assert found["rows"] == [{"source": f"epoch_{n}{suffix}", "revision": None} for n in (1, 2, 10)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ds", "nets"]


def test_base_model_of_the_dataset_is_the_first_checkpoint(tmp_path):
    run_import(make_folder(tmp_path / "nets", state=head_state), tmp_path / "ds", select=HEAD)
    vectors, _, layout = rows(tmp_path / "ds")
    network = load_base_model(tmp_path / "ds").build()
    layout.load_into(network, vectors[2])
    assert layout.names == ("5.weight", "5.bias")
    assert all(torch.equal(tensor, head_state(2)[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model_state_dict": {f"module._orig_mod.{name}": t for name, t in state.items()}},
        lambda state: {"n_averaged": torch.tensor(3), **{f"module.{name}": t for name, t in state.items()}},
        lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 1},
        lambda state: {name.replace("1.", "1._orig_mod.", 1): tensor for name, tensor in state.items()},
        lambda state: {name.replace("3.", "3._checkpoint_wrapped_module."): tensor for name, tensor in state.items()},
    ],
)
def test_wrapped_and_prefixed_state_dicts_are_recognised(tmp_path, wrap):
    make_folder(tmp_path / "nets", suffix=".pth", state=lambda seed: wrap(make_state(seed)))
    run_import(tmp_path / "nets", tmp_path / "ds")
    assert torch.equal(rows(tmp_path / "ds")[0][2], LAYOUT.flatten(make_state(2)))


def test_whole_module_gives_its_tensors(tmp_path):
    make_folder(tmp_path / "nets", suffix=".pth")
    network = mlp3(**NETWORK)
    torch.save(network, tmp_path / "nets" / "epoch_1.pth")
    run_import(tmp_path / "nets", tmp_path / "ds")
    assert torch.equal(rows(tmp_path / "ds")[0][0], LAYOUT.flatten(network.state_dict()))


def test_code_beside_the_weights_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "nets", suffix=".pth", state=lambda seed: {"model": make_state(seed), "x": Executed()})
    run_import(tmp_path / "nets", tmp_path / "ds")
    assert torch.equal(rows(tmp_path / "ds")[0][2], LAYOUT.flatten(make_state(2)))
    assert not (tmp_path / "executed").exists()


def test_file_from_before_torch_1_6_is_read(tmp_path):
    make_folder(tmp_path / "nets", suffix=".pth")
    torch.save(make_state(7), tmp_path / "nets" / "epoch_1.pth", _use_new_zipfile_serialization=False)
    run_import(tmp_path / "nets", tmp_path / "ds")
    assert torch.equal(rows(tmp_path / "ds")[0][0], LAYOUT.flatten(make_state(7)))


def test_metrics_are_read_by_a_pattern(tmp_path):
    folder = make_folder(tmp_path / "nets", ["7-acc0.5-s70", "8-acc0.25-s80"])
    pattern = r"(?P<epoch>\d+)-acc(?P<val_accuracy>[\d.]+)-s(?P<step>\d+)"
    summary = run_import(folder, tmp_path / "ds", metrics_pattern=pattern)
    _, columns, _ = rows(tmp_path / "ds")
    assert summary["metrics"] == ["val_accuracy"]
    assert columns["val_accuracy"].tolist() == [0.5, 0.25]
    assert (columns["epoch"].tolist(), columns["step"].tolist()) == ([7, 8], [70, 80])


def test_percent_in_names_become_fractions(tmp_path):
    folder = make_folder(tmp_path / "nets", ["a_93.5", "b_50"])
    run_import(folder, tmp_path / "ds", metrics_pattern=r"_(?P<test_accuracy_percent>[\d.]+)")
    assert rows(tmp_path / "ds")[1]["test_accuracy"].tolist() == pytest.approx([0.935, 0.5])


def test_metric_that_some_names_lack_is_null(tmp_path):
    folder = make_folder(tmp_path / "nets", ["a_loss2", "b"])
    run_import(folder, tmp_path / "ds", metrics_pattern=r"^\w(_loss(?P<val_loss>\d))?")
    assert load_parameter_dataset(tmp_path / "ds")[0].with_format(None)["val_loss"][:] == [2, None]


@pytest.mark.parametrize(
    ("names", "epochs", "steps"),
    [
        (["net-epoch=1-step=100", "net-epoch=2-step=200"], [1, 2], [100, 200]),
        (["global_step5", "global_step10"], None, [5, 10]),
        (["net_3", "net_12"], None, [0, 1]),
        (["epoch_1", "last"], [1, None], [0, 1]),
        (["epoch_1", "epoch_3", "best"], [1, 3, None], [0, 1, 2]),
        (["epoch_1_of_epoch_9", "epoch_2_of_epoch_9"], None, [0, 1]),
        (["epoch_1a", "epoch_1b"], None, [0, 1]),
        (["epoch1.5", "epoch2.5"], None, [0, 1]),
        (["timestep3", "timestep4"], None, [0, 1]),
    ],
)
def test_numbers_in_names_are_taken_where_they_are_unambiguous(tmp_path, names, epochs, steps):
    run_import(make_folder(tmp_path / "nets", names), tmp_path / "ds")
    dataset = load_parameter_dataset(tmp_path / "ds")[0].with_format(None)
    assert (dataset["epoch"][:], dataset["step"][:]) == (epochs or [None, None], steps)


def test_files_are_one_run_and_folders_are_one_each(tmp_path):
    a, b = (
        make_folder(tmp_path / "x" / "a", state=head_state),
        make_folder(tmp_path / "x" / "b", state=lambda seed: head_state(seed + 5)),
    )
    files = [tmp_path / "step_10.pt", tmp_path / "step_9.pt"]
    for seed, file in enumerate(files, 10):
        torch.save(head_state(seed), file)
    summary = run_import([b, *files, a], tmp_path / "ds", select=HEAD)
    _, columns, _ = rows(tmp_path / "ds")
    assert summary["runs"] == ["run-0", "b", "a"]
    assert columns["run"] == ["run-0"] * 2 + ["b"] * 3 + ["a"] * 3
    assert columns["step"].tolist() == [9, 10, 0, 1, 2, 0, 1, 2]
    sources = json.loads((tmp_path / "ds" / "stats.json").read_text())["metadata"]["import"]["rows"]
    assert [row["source"] for row in sources][:3] == ["step_9.pt", "step_10.pt", "x/b/epoch_1.safetensors"]


def test_run_can_be_named(tmp_path):
    sources = [make_folder(tmp_path / "a"), make_folder(tmp_path / "b")]
    with pytest.warns(UserWarning, match="3 of 6 checkpoints are exact copies"):
        assert run_import(sources, tmp_path / "ds", run="mine")["num_copies"] == 3
    assert rows(tmp_path / "ds")[1]["run"] == ["mine"] * 6


def test_relative_and_single_sources_are_taken(tmp_path, monkeypatch):
    make_folder(tmp_path / "nets")
    monkeypatch.chdir(tmp_path / "nets")
    assert run_import(".", "../ds")["runs"] == ["nets"]


def test_half_precision_is_kept(tmp_path):
    def half(seed):
        return {name: tensor.bfloat16() for name, tensor in make_state(seed).items()}

    run_import(make_folder(tmp_path / "nets", state=half), tmp_path / "ds")
    vectors, _, layout = rows(tmp_path / "ds")
    assert {spec.dtype for spec in layout.tensors} == {"bfloat16"}
    assert all(torch.equal(tensor, half(2)[name]) for name, tensor in layout.unflatten(vectors[2]).items())
    assert next(load_base_model(tmp_path / "ds").build().parameters()).dtype == torch.bfloat16


def convnet_state(seed, train=True):
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=3)
    if train:
        network.train()(torch.randn(2, 3, 32, 32))
    return network.state_dict()


def test_timm_network_is_imported_with_its_running_statistics(tmp_path):
    folder = make_folder(tmp_path / "nets", state=convnet_state)
    base = parse_base_model("timm:test_resnet", {"num_classes": 3})
    with pytest.raises(ValueError, match=r"running_\w+' is not selected, .* select='all' and buffers=True"):
        run_import(folder, tmp_path / "ds", base_model=base, select="all")
    found = run_import(folder, tmp_path / "ds", base_model=base)
    assert found["notes"] == ["Running statistics differ, too, and are selected."]
    vectors, _, layout = rows(tmp_path / "ds")
    network = load_base_model(tmp_path / "ds").build()
    layout.load_into(network, vectors[1])
    assert all(torch.equal(tensor, convnet_state(1)[name]) for name, tensor in network.state_dict().items())


def test_number_of_classes_that_was_not_named_is_told_by_the_head(tmp_path):
    folder = make_folder(tmp_path / "nets", state=convnet_state)
    found = run_import(folder, tmp_path / "ds", base_model=parse_base_model("timm:test_resnet"))
    assert found["notes"][0] == "The network is test_resnet with num_classes=3, as the shapes say."
    assert load_base_model(tmp_path / "ds").kwargs == {"num_classes": 3}


def test_number_of_classes_that_was_named_wrongly_is_advised(tmp_path):
    folder = make_folder(tmp_path / "nets", state=convnet_state)
    base = parse_base_model("timm:test_resnet", {"num_classes": 5})
    with pytest.raises(ValueError, match=r"expected shape \(5,.*same architecture with num_classes=3\."):
        run_import(folder, tmp_path / "ds", base_model=base)


def test_rest_that_differs_is_refused_unless_the_first_is_wanted(tmp_path):
    folder = make_folder(tmp_path / "nets")
    largest = max(
        ((make_state(0)[name] - make_state(1)[name]).abs().max().item(), name)
        for name in make_state()
        if not name.startswith("5.")
    )
    with pytest.raises(ValueError) as caught:
        run_import(folder, tmp_path / "ds", select=HEAD)
    message = str(caught.value)
    assert f"epoch_2.safetensors: tensor {largest[1]!r} is not selected" in message
    assert f"up to {largest[0]:.3g}" in message and "select='all'," in message and "keep_first_rest=True" in message
    run_import(folder, tmp_path / "ds", select=HEAD, keep_first_rest=True)
    network = load_base_model(tmp_path / "ds").build()
    assert torch.equal(network[1].weight, make_state(0)["1.weight"])


def test_tied_parameters_are_stored_once(tmp_path):
    torch.manual_seed(0)
    base = parse_base_model(
        "transformers:GPT2LMHeadModel",
        {"vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
        | {"bos_token_id": 0, "eos_token_id": 0},
    )
    networks = [base.build(), base.build()]
    for index, network in enumerate(networks):
        network.save_pretrained(tmp_path / f"epoch_{index}")
        torch.save(network.state_dict(), tmp_path / f"epoch_{index}.pth")
    for name, sources in {"a": "epoch_{}/model.safetensors", "b": "epoch_{}.pth"}.items():
        files = [tmp_path / sources.format(index) for index in range(2)]
        run_import(files, tmp_path / name, base_model=base)
        vectors, columns, layout = rows(tmp_path / name)
        assert columns["epoch"].tolist() == [0, 1]
        assert "lm_head.weight" not in layout.names
        network = load_base_model(tmp_path / name).build()
        layout.load_into(network, vectors[1])
        tokens = torch.arange(6)[None]
        assert torch.equal(network(tokens).logits, networks[1](tokens).logits)


# Malformed inputs: one line, the file named, nothing left behind.


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path, **tensors):
    state = {**load_file(path), **{name.replace("_", ".", 1).lstrip("n"): t for name, t in tensors.items()}}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


class Executed:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def oversized_header(path):
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


LAST = "epoch_10.safetensors"
BROKEN = {
    "missing tensor": (
        lambda f: change(f / LAST, n5_bias=None),
        {},
        "5 of 6 tensors fit .* '5.bias': it is missing. Where files hold a part .*: rest=PATH",
    ),
    "unexpected tensor": (
        lambda f: change(f / LAST, n9_bias=torch.ones(2)),
        {},
        "'9.bias', which the network does not have; it belongs to another architecture",
    ),
    "other shape": (
        lambda f: change(f / LAST, n5_bias=torch.ones(3)),
        {},
        r"5 of 6 tensors fit .* '5.bias': expected shape \(2,\), found \(3,\)",
    ),
    "other dtype": (
        lambda f: change(f / LAST, n5_bias=torch.ones(2).half()),
        {},
        "tensor '5.bias': expected dtype float32, found torch.float16",
    ),
    "other dtype of the rest": (
        lambda f: change(f / LAST, n1_bias=torch.ones(3).half()),
        {"select": HEAD},
        "tensor '1.bias': expected dtype torch.float32",
    ),
    "integers": (lambda f: change(f / LAST, n5_bias=torch.ones(2).long()), {}, "expected floating-point values"),
    "NaN": (lambda f: change(f / LAST, n5_bias=torch.tensor([0, torch.nan])), {}, "tensor '5.bias' has a NaN"),
    "infinity": (lambda f: change(f / LAST, n5_bias=torch.tensor([0, torch.inf])), {}, "tensor '5.bias' has a NaN"),
    "NaN in the rest": (
        lambda f: [change(file, n1_bias=torch.full((3,), torch.nan)) for file in f.iterdir()],
        {"select": HEAD},
        "epoch_1.safetensors: tensor '1.bias' has a NaN",
    ),
    "truncated safetensors": (lambda f: truncate(f / LAST), {}, "no complete safetensors file"),
    "empty safetensors": (lambda f: (f / LAST).write_bytes(b""), {}, "no complete safetensors file"),
    "oversized header": (lambda f: oversized_header(f / LAST), {}, "no complete safetensors file"),
    "no tensors": (lambda f: save_file({}, f / LAST), {}, "found no tensor at all"),
    "truncated pth": (
        lambda f: [torch.save(make_state(9), f / "epoch_11.pth"), truncate(f / "epoch_11.pth")],
        {},
        "epoch_11.pth is no complete PyTorch file",
    ),
    "no pth": (
        lambda f: (f / "a.pth").write_bytes(b"hello there, no pickle"),
        {},
        "a.pth: expected weights, found a text that begins 'hello there, no pickle'",
    ),
    "code alone": (
        lambda f: torch.save(Executed(), f / "epoch_11.pth"),
        {},
        r"epoch_11.pth: expected a state dict, found <placeholder of \w+.mkdir>",
    ),
    "tensor alone": (
        lambda f: torch.save(torch.ones(2), f / "a.pth"),
        {},
        "a.pth: expected a state dict, found a tensor w",
    ),
    "two state dicts": (
        lambda f: torch.save({"model": make_state(), "state_dict": make_state(1), "epoch": 1}, f / "a.pth"),
        {},
        "a.pth: 2 entries fit the network: 'model' and 'state_dict'; name one, as key='model'",
    ),
    "sparse tensor": (
        lambda f: torch.save({**make_state(), "5.weight": torch.eye(2).to_sparse()}, f / "a.pth"),
        {},
        "5 of 6 tensors fit .*; the first that does not is '5.weight': expected a dense one",
    ),
    "meta tensor": (
        lambda f: torch.save({**make_state(), "5.bias": torch.ones(2, device="meta")}, f / "a.pth"),
        {},
        "5 of 6 tensors fit .*; the first that does not is '5.bias': expected a dense one",
    ),
    "one checkpoint": (
        lambda f: [(f / name).unlink() for name in ("epoch_2.safetensors", LAST)],
        {},
        "at least 2 checkpoints in .*nets, found 1",
    ),
    "no checkpoint": (
        lambda f: [file.unlink() for file in f.iterdir()] and (f / "notes.txt").write_text("x"),
        {},
        r"nets: expected files of weights, .*found notes.txt",
    ),
    "no folder": (shutil.rmtree, {}, "nets, found no such file or folder"),
    "a pipe": (lambda f: os.mkfifo(f / "a.pt"), {}, "expected weights at .*a.pt, found a named pipe"),
    "only a pipe": (
        lambda f: (shutil.rmtree(f), os.mkfifo(f)),
        {},
        "expected weights or a folder at .*nets, found a named pipe",
    ),
    "no regular expression": (lambda f: None, {"metrics_pattern": "("}, "no regular expression"),
    "no groups": (lambda f: None, {"metrics_pattern": "epoch"}, "expected named groups"),
    "reserved group": (lambda f: None, {"metrics_pattern": "(?P<accuracy>.)"}, "say train_loss or val_accuracy"),
    "no match": (
        lambda f: (f / LAST).rename(f / "last.safetensors"),
        {"metrics_pattern": r"epoch_(?P<epoch>\d+)"},
        "last.safetensors: the metrics pattern .* does not match its name 'last'",
    ),
    "no number": (lambda f: None, {"metrics_pattern": "(?P<val_loss>epoch)"}, "'val_loss' is 'epoch', expected a fin"),
    "fractional step": (lambda f: None, {"metrics_pattern": "(?P<step>e)"}, "step is 'e', expected a whole number"),
    "percent": (
        lambda f: None,
        {"metrics_pattern": r"_(?P<val_accuracy>\d+)"},
        r"'val_accuracy' is '2', expected a fraction in \[0, 1\]; .*\(\?P<val_accuracy_percent>",
    ),
    "no base model": (
        lambda f: None,
        {"base_model": None},
        "expected a config.json .* name the base model",
    ),
    "unknown network": (lambda f: None, {"base_model": BaseModel.timm("nothing")}, "has no model 'nothing'"),
    "untrusted factory": (lambda f: None, {"base_model": BaseModel.imported("os:mkdir")}, "trusted_imports"),
    "impossible arguments": (
        lambda f: None,
        {"base_model": BaseModel.timm("test_resnet", num_classes="x")},
        "cannot be built with its arguments",
    ),
    "impossible selection": (lambda f: None, {"select": "nothing.*"}, "matches no parameter"),
    "revisions of a folder": (lambda f: None, {"all_revisions": True}, "expected a repository hub:user/name"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("name", BROKEN)
def test_malformed_input_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "nets", state=head_state)
    damage, options, message = BROKEN[name]
    damage(folder)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        run_import(folder, tmp_path / "ds", **options)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(tmp_path) == before and not (tmp_path / "ds").exists() and not (tmp_path / "executed").exists()
    assert [path.name for path in tmp_path.iterdir()] == (["nets"] if folder.exists() else [])


def test_source_given_twice_is_refused(tmp_path):
    folder = make_folder(tmp_path / "nets")
    with pytest.raises(ValueError, match="expected every source once"):
        run_import([folder, tmp_path / "nets" / ".." / "nets"], tmp_path / "ds")


def test_other_kind_of_file_is_refused(tmp_path):
    files = [make_folder(tmp_path / "nets") / "epoch_1.safetensors", tmp_path / "net.ckpt"]
    files[1].write_bytes(b"x")
    with pytest.raises(ValueError, match=r"net.ckpt: expected weights, found a text that begins 'x'"):
        run_import(files, tmp_path / "ds")


def test_folder_with_files_is_not_written_to(tmp_path):
    folder = make_folder(tmp_path / "nets")
    before = snapshot(folder)
    for out in (folder, folder / "epoch_1.safetensors"):
        with pytest.raises(ValueError, match="empty or new folder"):
            run_import(folder, out)
    assert snapshot(folder) == before
    (tmp_path / "ds").mkdir()
    assert run_import(folder, tmp_path / "ds")["num_checkpoints"] == 3


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        ("resnet18", {}, "expected a base model timm:NAME"),
        ("timm:", {}, "expected a base model timm:NAME"),
        ("keras:resnet", {}, "expected a base model timm:NAME"),
        ("transformers:Nothing", {}, "has no model 'Nothing'"),
        ("transformers:ViTModel", {"hidden_size": "wide"}, "does not take this config of a 'vit'"),
        ("timm:resnet18", {"checkpoint_path": "x.pth"}, "may not take 'checkpoint_path'"),
    ],
)
def test_malformed_base_model_is_refused(text, kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_base_model(text, kwargs)
    assert len(str(caught.value).splitlines()) == 1


def test_imported_layout_is_that_of_the_network(tmp_path):
    run_import(
        make_folder(tmp_path / "nets", state=convnet_state),
        tmp_path / "ds",
        buffers=True,
        base_model=parse_base_model("timm:test_resnet", {"num_classes": 3}),
    )
    network = timm.create_model("test_resnet", num_classes=3)
    assert rows(tmp_path / "ds")[2].fingerprint == ParameterLayout.from_model(network, buffers=True).fingerprint


def test_base_model_is_read_from_json(tmp_path):
    file = tmp_path / "base.json"
    file.write_text(json.dumps(BASE.to_dict()))
    assert read_base_model(file) == BASE


@pytest.mark.parametrize(
    "text", ["{", "3", "{}", '{"library": "timm", "name": 3, "kwargs": {}, "weights": 0, "sha256": 0}']
)
def test_malformed_base_model_json_is_refused(tmp_path, text):
    file = tmp_path / "base.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"base.json") as caught:
        read_base_model(file)
    assert len(str(caught.value).splitlines()) == 1
