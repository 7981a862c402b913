"""Files that are good but not read here: what they are, and the line that makes weights of them that are."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ...hub.snapshot import some_of
from .placeholder import Placeholder
from .rebuild import ALONE, Unreadable

GGUF = "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE).save_pretrained(NEW)"
HDF5 = (
    "f, d = h5py.File(FILE), {}; "
    "f.visititems(lambda n, v: d.update({n: v[()]}) if isinstance(v, h5py.Dataset) else None); "
    "numpy.savez(NEW + '.npz', **d), after renaming and transposing to the names and shapes of the PyTorch network"
)
ONNX = "numpy.savez(NEW, **{t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(FILE).graph.initializer})"
FLAX = (
    "numpy.savez(NEW, **{'.'.join(k): v for k, v in flax.traverse_util.flatten_dict("
    "flax.serialization.msgpack_restore(open(FILE, 'rb').read())).items()})"
)
TENSORFLOW = (
    "r = tf.train.load_checkpoint(PREFIX); "
    "numpy.savez(NEW, **{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()})"
)
VECTOR = (
    "torch.nn.utils.vector_to_parameters(torch.from_numpy(numpy.load(FILE)), model.parameters()); "
    "torch.save(model.state_dict(), NEW)"
)
TORCHSCRIPT = "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
EXPORTED = "torch.save(torch.export.load(FILE).state_dict, NEW)"
DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER NEW"
ZERO = "python zero_to_fp32.py FOLDER NEW (the script lies beside the shards)"
BIG_ENDIAN = "torch.save(torch.load(FILE, weights_only=True), NEW)"
TAR = "tar -xf FILE, and give what comes out"
OLD_TAR = "torch.save(torch.load(FILE, weights_only=False), NEW), which executes what is in it"

# How they begin.
SIGNATURES = {
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as Keras and h5py write them", HDF5),
    b"GGUF": ("a GGUF file", GGUF),
    b"\x93NUMPY": ("one array without names (.npy)", VECTOR),
    b"\x1f\x8b": ("compressed by gzip", "gunzip FILE"),
    b"BZh": ("compressed by bzip2", "bunzip2 FILE"),
    b"\xfd7zXZ\x00": ("compressed by xz", "unxz FILE"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unzstd FILE"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x FILE, and give what comes out"),
    b"Rar!": ("a RAR archive", "unrar x FILE, and give what comes out"),
    b"PAR1": ("a Parquet file", ALONE),
}
TEXTS = {
    "version https://git-lfs": ("a pointer of Git LFS instead of the file", "fetch it by git lfs pull"),
    "<!doctype html": ("a web page, of a login or an error", "download the file again"),
    "<html": ("a web page, of a login or an error", "download the file again"),
    "<?xml": ("an XML document", "download the file again, or " + ALONE),
}


def refusal(what: str, advice: str) -> Unreadable:
    """The error of a file that is whole, and not read."""
    return Unreadable(f"{what}; convert it: {advice}")


def foreign_file(head: bytes, tail: bytes, size: int) -> Unreadable | None:
    """What a file is by its first and last bytes, where it is known and not read.

    Args:
        head (`bytes`): The first 1,024 bytes.
        tail (`bytes`): The last 8.
        size (`int`): Of the file, in bytes.
    """
    for signature, (what, advice) in SIGNATURES.items():
        if head.startswith(signature):
            return refusal(what, advice)
    if head[257:262] == b"ustar" or head.startswith((b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")):
        old = re.match(rb"(\./)?(sys_info|pickle|storages|tensors)\0", head)
        return refusal("a tar archive" + " of PyTorch 0.1" * bool(old), OLD_TAR if old else TAR)
    if head[4:8] == b"TFL3":
        return refusal("a TensorFlow Lite model", "convert the model it was made of, and " + ALONE)
    if tail == struct.pack("<Q", 0xDB4775248B80FB57):
        return refusal("the index of a TensorFlow checkpoint", TENSORFLOW)
    # Protocol buffers have no signature: the first field is the version, of the file or of its schema.
    if size > 8 and head[0] == 0x08 and head[2] in b"\x12\x1a\x22\x2a\x32\x3a\x42":
        if head[1] == 1 and head[2] == 0x12:
            return refusal("a TensorFlow SavedModel", TENSORFLOW)
        if 1 < head[1] < 32:
            return refusal("an ONNX model", ONNX)
    if size > 2 and 0x81 <= head[0] <= 0x8F and (0xA0 < head[1] < 0xC0 or head[1] == 0xD9):
        return refusal("a file of msgpack, as flax writes it", FLAX)
    return None


def foreign_text(head: bytes) -> Unreadable | None:
    """What a text is; `None` for what is none."""
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 1000 else "ignore").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return None
    if not text or not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    for beginning, (what, advice) in TEXTS.items():
        if text.lower().startswith(beginning):
            return Unreadable(f"{what}; {advice}")
    first = text.splitlines()[0][:40]
    return Unreadable(f"a text that begins {first!r}; give the file of weights")


def foreign_zip(names: Collection[str]) -> Unreadable | None:
    """What a zip archive is by the names of its members, where it is known and not read."""
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "archive_format" in last or "serialized_exported_program.json" in last:
        return refusal("a program of torch.export (.pt2)", EXPORTED)
    if "constants.pkl" in last:
        return refusal("TorchScript", TORCHSCRIPT)
    if "extern_modules" in last:
        return refusal("a package of torch.package", "load it by torch.package, and " + ALONE)
    if "model.weights.h5" in last:
        return refusal("a Keras model (.keras)", "unzip FILE model.weights.h5; " + HDF5)
    return None


def foreign_value(value: Any) -> Unreadable | None:
    """What a file is by what it holds, where that is not the weights."""
    if isinstance(value, Placeholder) and value.module.startswith("torch.distributed.checkpoint"):
        return refusal("the index of torch.distributed.checkpoint", DCP)
    if isinstance(value, dict) and "ds_version" in value:
        module = value.get("module")
        tensors = [v for v in module.values() if isinstance(v, torch.Tensor)] if isinstance(module, dict) else []
        if not any(tensor.numel() for tensor in tensors):
            return refusal("a DeepSpeed shard", ZERO)
    return None


def foreign_tensor(value: Any) -> str | None:
    """Why a placeholder stands for a tensor, and what to do; `None` for anything that is no tensor."""
    if not isinstance(value, Placeholder) or value.module not in ("torch._utils", "torch._tensor"):
        return None
    if "qtensor" in value.name or value.name.startswith("_rebuild_tensor"):
        return "quantized; import the network from before it was quantized, or save tensor.dequantize()"
    if "sparse" in value.name:
        return "sparse; save tensor.to_dense()"
    if "meta" in value.name:
        return "empty, without values (device meta)"
    return "of a class of its own; save a plain tensor"


def foreign_folder(folder: Path) -> Unreadable:
    """What a folder is, where a file was expected."""
    names = {path.name for path in folder.iterdir()}
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return refusal("a folder of torch.distributed.checkpoint", DCP)
    if any(re.fullmatch(r"(bf16_|fp16_)?zero_pp_rank_.*|global_step\d+", name) for name in names):
        return refusal("a folder of DeepSpeed shards", ZERO)
    if "saved_model.pb" in names:
        return refusal("a TensorFlow SavedModel", TENSORFLOW)
    if names & {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}:
        return refusal("a checkpoint of Orbax", "restore it by orbax.checkpoint, and numpy.savez its arrays by name")
    return Unreadable(f"a folder of {some_of(names) if names else 'nothing'}; give the files in it")
