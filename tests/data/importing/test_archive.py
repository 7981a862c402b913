"""What good files hold, whoever has written them."""

import argparse
import collections
import datetime
import enum
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weight_files import array_bytes, saved, zipped

from pdiff_hf.data.importing.archive import read_archive
from pdiff_hf.data.importing.placeholder import Placeholder, state_of_module

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool]
DTYPES += [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn, torch.uint16]
TENSORS = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
SHARED = torch.arange(12.0).reshape(3, 4)
TENSORS |= {
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "transposed": SHARED.T,
    "part": SHARED[1:, ::2],
    "expanded": torch.ones(1).expand(5),
    "parameter": nn.Parameter(torch.ones(2)),
}


class Attributes(dict):
    """As experiment frameworks have them."""

    __getattr__ = dict.__getitem__


class Phase(enum.Enum):
    TRAIN = 1


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.same = self.first
        self.last = nn.Linear(3, 2, bias=False)
        self.last.weight = nn.Parameter(torch.ones(2, 3))
        self.tied = self.last.weight
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("let_go", torch.ones(1), persistent=False)
        self.register_parameter("absent", None)


def read(tmp_path, data, name="a.weights"):
    file = tmp_path / name
    file.write_bytes(data)
    return read_archive(file, "a")


def equal(first, second):
    return (first.dtype, first.shape) == (second.dtype, second.shape) and torch.equal(first, second)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zip_archive", [True, False])
def test_tensors_of_torch_save_are_as_they_were(tmp_path, zip_archive, protocol):
    data = saved({"deep": [TENSORS]}, _use_new_zipfile_serialization=zip_archive, pickle_protocol=protocol)
    (found,) = read(tmp_path, data)["deep"]
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert equal(found[name].to(torch.float32), tensor.to(torch.float32)), name
        assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride(), name
    assert found["part"].untyped_storage().data_ptr() == found["transposed"].untyped_storage().data_ptr()


def test_tensors_of_a_plain_pickle_are_read(tmp_path):
    tensors = {name: tensor for name, tensor in TENSORS.items() if "float8" not in name and "uint16" not in name}
    found = read(tmp_path, pickle.dumps(tensors))
    assert all(equal(found[name], tensor.detach()) for name, tensor in tensors.items())


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_a_plain_pickle_become_tensors(tmp_path, protocol):
    array = np.arange(6.0).reshape(2, 3)
    arrays = {
        "a": array,
        "f": np.asfortranarray(array),
        "b": array.astype(">f4"),
        "h": array.astype("f2"),
        "again": array,
    }
    arrays |= {"bool": array > 2, "complex": array * 1j, "whole": array.astype("u4"), "part": array[:, 1:]}
    found = read(tmp_path, pickle.dumps(arrays, protocol))
    for name, values in arrays.items():
        expected = torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
        assert equal(found[name], expected), name
    assert found["again"] is found["a"]


def test_safetensors_are_read_whatever_they_are_called(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(read(tmp_path, (tmp_path / "a.safetensors").read_bytes(), "a.pt")["a"], torch.arange(3.0))
    assert torch.equal(read(tmp_path, saved({"a": torch.ones(2)}), "b.safetensors")["a"], torch.ones(2))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_is_read_by_names(tmp_path, compression):
    arrays = {
        "fc.weight": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.eye(3, dtype=">f4")),
        "n": np.array(3),
    }
    data = zipped({f"{name}.npy": array_bytes(array) for name, array in arrays.items()}, compression)
    found = read(tmp_path, data)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert equal(found[name], torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))), name
    words = zipped({"a.npy": array_bytes(np.array(["x"])), "o.npy": array_bytes(np.array([{}]), allow_pickle=True)})
    assert {type(value) for value in read(tmp_path, words).values()} == {Placeholder}


@pytest.mark.parametrize("zip_archive", [True, False])
def test_policy_of_stable_baselines_is_read_without_its_optimiser(tmp_path, zip_archive):
    policy = saved({"pi.weight": torch.ones(2)}, _use_new_zipfile_serialization=zip_archive)
    members = {"data": b"{}", "pytorch_variables.pth": saved(None), "policy.pth": policy}
    found = read(tmp_path, zipped(members | {"policy.optimizer.pth": saved({"state": {}})}), "ppo.zip")
    assert list(found) == ["pi.weight"] and torch.equal(found["pi.weight"], torch.ones(2))


def test_archive_that_was_zipped_again_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as new:
        (tmp_path / "old").write_bytes(saved({"a": SHARED}))
        with zipfile.ZipFile(tmp_path / "old") as old:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    assert torch.equal(read_archive(tmp_path / "new", "a")["a"], SHARED)


def test_checksums_that_torch_left_out_do_not_matter(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"a": SHARED})
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read(tmp_path, data)["a"], SHARED)


def test_containers_and_numbers_are_plain(tmp_path):
    log = collections.defaultdict(list, {"loss": [0.5]})
    value = {
        "dict": collections.OrderedDict(a=1),
        "log": log,
        "count": collections.Counter("aab"),
        "set": {1},
        "frozen": frozenset({"x"}),
        "size": torch.Size([2, 3]),
        "numbers": (np.float64(0.5), np.int32(3), np.bool_(True), 2 + 1j, 10**20, -1, None, True),
        "bytes": (b"\xff", bytearray(b"a")),
        3: "whole numbers are keys",
        (1, "a"): "and tuples",
    }
    for protocol in (2, 5):
        found = read(tmp_path, saved(value, pickle_protocol=protocol))
        assert found["dict"] == {"a": 1} and found["log"] == {"loss": [0.5]} and found["count"] == {"a": 2, "b": 1}
        assert (found["set"], found["frozen"], found["size"]) == ([1], ["x"], (2, 3))
        assert found["numbers"] == (0.5, 3, True, 2 + 1j, 10**20, -1, None, True)
        assert [type(number) for number in found["numbers"][:3]] == [float, int, bool]
        assert found["bytes"] == (b"\xff", b"a") and found[3] and found[1, "a"]
        assert {type(found[name]) for name in ("dict", "log", "count")} == {dict}


def test_foreign_objects_keep_name_and_state(tmp_path):
    value = {
        "args": argparse.Namespace(lr=0.1),
        "path": pathlib.PurePosixPath("x/y"),
        "phase": Phase.TRAIN,
        "when": datetime.date(2024, 1, 2),
        "config": Attributes(a=torch.ones(1)),
        "dtype": torch.float16,
        "factory": dict,
    }
    found = read(tmp_path, saved(value))
    assert {type(placeholder) for placeholder in found.values()} == {Placeholder}
    assert (found["args"].full_name, found["args"].state) == ("argparse.Namespace", {"lr": 0.1})
    assert (found["path"].name, found["path"].args) == ("PurePosixPath", ("x", "y"))
    assert (found["phase"].name, found["phase"].args) == ("Phase", (1,))
    assert found["when"].full_name == "datetime.date"
    assert torch.equal(found["config"].entries["a"], torch.ones(1))
    assert (found["dtype"].full_name, found["factory"].full_name) == ("torch.float16", "builtins.dict")


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("zip_archive", [True, False])
def test_whole_module_has_the_names_of_its_state_dict(tmp_path, zip_archive):
    network = nn.Sequential(Block(), nn.ReLU(), nn.LSTM(2, 2))
    found = state_of_module(read(tmp_path, saved(network, _use_new_zipfile_serialization=zip_archive)))
    expected = network.state_dict()
    assert list(found) == list(expected)
    assert all(equal(found[name], tensor) for name, tensor in expected.items())
    assert found["0.last.weight"] is found["0.tied"] and found["0.same.bias"] is found["0.first.bias"]


def test_what_is_no_module_has_no_state():
    assert state_of_module({"_modules": {}}) is None
    assert state_of_module(Placeholder("a", "B", (), {"_modules": {}})) is None


def test_modules_that_hold_each_other_are_refused():
    one = Placeholder("a", "B", (), {"_parameters": {}, "_buffers": {}, "_modules": {}})
    one.state["_modules"]["inner"] = one
    with pytest.raises(ValueError, match=r"the modules of a\.B hold each other"):
        state_of_module(one)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants", "ignore::DeprecationWarning")
def test_tensors_without_plain_values_stay_placeholders(tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    found = read(tmp_path, saved({"q": quantized, "s": torch.eye(2).to_sparse(), "m": torch.ones(2, device="meta")}))
    assert {type(value) for value in found.values()} == {Placeholder}


def test_instances_of_protocol_0_are_placeholders(tmp_path):
    found = read(tmp_path, pickle.dumps({"x": argparse.Namespace(lr=1)}, 0))["x"]
    assert (found.full_name, found.state) == ("argparse.Namespace", {"lr": 1})


def test_what_was_read_is_freed_at_once(tmp_path):
    import gc
    import weakref

    gc.disable()
    try:
        found = read(tmp_path, saved({"a": SHARED}, _use_new_zipfile_serialization=False))
        tensor = weakref.ref(found["a"])
        del found
        assert tensor() is None
    finally:
        gc.enable()
