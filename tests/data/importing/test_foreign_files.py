"""Good files of other kinds: what they are, and how they are converted; none is called damaged."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import struct
import tarfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp
from weight_files import array_bytes, saved, torch_zip, zipped

from pdiff_hf.data.importing.archive import read_archive
from pdiff_hf.data.importing.entries import FileTensors


def tar(*names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return stream.getvalue()


def protobuf(version, producer=b"pytorch"):
    return bytes([8, version, 0x12, len(producer)]) + producer + bytes(64)


NUMBERS = saved(torch.ones(4), _use_new_zipfile_serialization=False)
SHARD = {"optimizer_state_dict": {"zero_stage": 2, "partition_count": 8}, "ds_config": {}, "ds_version": "0.14"}
FOREIGN = {
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(200), r"an HDF5 file, .*h5py\.File\(FILE\)"),
    "Keras": (
        zipped({"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b"\x89HDF\r\n\x1a\n"}),
        r"a Keras model \(\.keras\); convert it: unzip FILE model\.weights\.h5",
    ),
    "ONNX": (protobuf(8), r"an ONNX model; convert it: numpy\.savez\(NEW, .*onnx\.load\(FILE\)"),
    "ONNX without producer": (b"\x08\x09\x3a\x80\x01" + bytes(64), "an ONNX model"),
    "SavedModel": (protobuf(1), r"a TensorFlow SavedModel; .*tf\.train\.load_checkpoint\(PREFIX\)"),
    "TensorFlow index": (
        bytes(100) + struct.pack("<Q", 0xDB4775248B80FB57),
        "the index of a TensorFlow checkpoint; .*load_checkpoint",
    ),
    "TensorFlow Lite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "a TensorFlow Lite model"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(64), r"a GGUF file; .*gguf_file=FILE\)\.save_pretrained\(NEW\)"),
    "flax": (
        b"\x81\xa6params\x81\xa5Dense\xc7\x12\x01\x93\x91\x02\xa7float32\xc4\x04" + bytes(4),
        r"a file of msgpack, as flax writes it; .*msgpack_restore\(open\(FILE, 'rb'\)\.read\(\)\)",
    ),
    "npy": (array_bytes(np.zeros(9, "f4")), r"one array without names \(\.npy\); .*vector_to_parameters"),
    "gzip": (gzip.compress(NUMBERS), "compressed by gzip; convert it: gunzip FILE"),
    "bzip2": (bz2.compress(NUMBERS), "compressed by bzip2; convert it: bunzip2 FILE"),
    "xz": (lzma.compress(NUMBERS), "compressed by xz; convert it: unxz FILE"),
    "tar": (tar("weights.pt"), "a tar archive; convert it: tar -xf FILE"),
    "PyTorch 0.1": (tar("sys_info", "pickle", "tensors", "storages"), "a tar archive of PyTorch 0.1; .*torch.load"),
    "big-endian archive": (
        torch_zip(b"\x80\x02N.", byteorder=b"big"),
        r"the big-endian file of another machine; convert it: torch\.save\(torch\.load\(FILE, weights_only=True\)",
    ),
    "big-endian legacy": (
        b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}, {}, [])),
        "the big-endian file of another machine",
    ),
    "DeepSpeed shard": (saved(SHARD), r"a DeepSpeed shard; convert it: python zero_to_fp32\.py FOLDER NEW"),
    "DeepSpeed ZeRO-3": (
        saved({"module": {"w": torch.zeros(0)}, "ds_version": "0.14", "param_shapes": [{"w": torch.Size([2])}]}),
        "a DeepSpeed shard",
    ),
    "torch.package": (zipped({"a/.data/extern_modules": b"", "a/model/model.pkl": b""}), r"torch\.package"),
    "Parquet": (b"PAR1" + bytes(64) + b"PAR1", "a Parquet file"),
    "zip of files": (zipped({"epoch_1.pt": NUMBERS}), r"a zip archive of epoch_1\.pt; unzip it"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n",
        "a pointer of Git LFS instead of the file; fetch it by git lfs pull",
    ),
    "web page": (
        b"<!DOCTYPE html>\n<html><head><title>Sign in</title>",
        "a web page, of a login or an error; download",
    ),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "JSON": (json.dumps({"lr": 0.1}).encode(), r"a text that begins '\{\"lr\": 0.1\}'"),
    "text": ("größe: 3\n".encode() * 400, "a text that begins 'größe: 3'"),
    "Python": (b"(" + b"x" * 50 + b")\nprint(1)\n", "a text that begins"),
}


def refused(file):
    with pytest.raises(ValueError) as caught:
        read_archive(file, "a file")
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith("a file: expected ")
    assert "damaged" not in message and "no complete" not in message
    return message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.parametrize("name", FOREIGN)
def test_other_kind_of_file_is_named_with_its_conversion(tmp_path, name, suffix):
    data, expected = FOREIGN[name]
    file = tmp_path / f"a{suffix}"
    file.write_bytes(data)
    assert re.search(expected, refused(file))


def test_unknown_bytes_are_damaged_where_the_suffix_says_what_they_were_to_be(tmp_path):
    (tmp_path / "a.pt").write_bytes(bytes(range(1, 200)))
    assert "another kind of file, which begins 01 02 03 04 05 06 07 08" in refused(tmp_path / "a.pt")
    (tmp_path / "a.pt").rename(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is no complete safetensors file"):
        read_archive(tmp_path / "a.safetensors", "a file")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_named_and_its_conversion_is_read(tmp_path):
    network = nn.Linear(2, 3)
    torch.jit.script(network).save(str(tmp_path / "a.pt"))
    line = "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
    assert f"found TorchScript; convert it: {line}." in refused(tmp_path / "a.pt")
    exec(line, {"torch": torch, "FILE": str(tmp_path / "a.pt"), "NEW": tmp_path / "b.pt"})
    assert torch.equal(read_archive(tmp_path / "b.pt", "b")["weight"], network.weight)


def test_exported_program_is_named_and_its_conversion_is_read(tmp_path):
    network = nn.Linear(2, 3)
    torch.export.save(torch.export.export(network, (torch.ones(1, 2),)), tmp_path / "a.pt2")
    line = "torch.save(torch.export.load(FILE).state_dict, NEW)"
    assert f"a program of torch.export (.pt2); convert it: {line}." in refused(tmp_path / "a.pt2")
    exec(line, {"torch": torch, "FILE": tmp_path / "a.pt2", "NEW": tmp_path / "b.pt"})
    assert torch.equal(read_archive(tmp_path / "b.pt", "b")["weight"], network.weight)


def test_distributed_checkpoint_is_named_and_its_conversion_is_read(tmp_path):
    torch.save({"model": {"weight": torch.arange(3.0)}}, tmp_path / "old.pt")
    torch_save_to_dcp(tmp_path / "old.pt", tmp_path / "dcp")
    line = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER NEW"
    assert f"a folder of torch.distributed.checkpoint; convert it: {line}." in refused(tmp_path / "dcp")
    assert "the index of torch.distributed.checkpoint" in refused(tmp_path / "dcp" / ".metadata")
    # What the command calls.
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "new.pt")
    assert torch.equal(read_archive(tmp_path / "new.pt", "new")["model"]["weight"], torch.arange(3.0))


def test_vector_is_converted_by_the_line_that_is_said(tmp_path):
    model = nn.Linear(2, 3)
    np.save(tmp_path / "a.npy", np.arange(9, dtype="f4"))
    line = refused(tmp_path / "a.npy").partition("convert it: ")[2].removesuffix(".")
    exec(line, {"torch": torch, "numpy": np, "model": model, "FILE": tmp_path / "a.npy", "NEW": tmp_path / "b.pt"})
    assert torch.equal(read_archive(tmp_path / "b.pt", "b")["bias"], torch.arange(6.0, 9.0))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt"], "a folder of DeepSpeed shards; .*zero_to_fp32"),
        (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "a folder of DeepSpeed shards"),
        (["global_step100", "latest"], "a folder of DeepSpeed shards"),
        (["saved_model.pb", "variables"], "a TensorFlow SavedModel"),
        (["_METADATA", "d"], "a checkpoint of Orbax"),
        (["a.pt"], r"a folder of a\.pt; give the files in it"),
        ([], "a folder of nothing"),
    ],
)
def test_folder_is_named(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    assert re.search(expected, refused(tmp_path))


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, expected in {"pipe": "found a named pipe", "link": "found no such file", "none": "no such file"}.items():
        with pytest.raises(ValueError, match=expected):
            read_archive(tmp_path / name, "a file")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_that_are_not_dense_are_named_with_their_conversion(tmp_path):
    tensors = {
        "quantized; .*before it was quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        r"sparse; save tensor\.to_dense\(\)": torch.eye(2).to_sparse(),
        "empty, without values": torch.ones(2, device="meta"),
    }
    for expected, tensor in tensors.items():
        torch.save({"w": tensor}, tmp_path / "a.pt")
        file = FileTensors.of(read_archive(tmp_path / "a.pt", "a.pt"), ["w"])
        assert not file.tensors and re.match(expected, file.unread["w"])
