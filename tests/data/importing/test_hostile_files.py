"""Files made to execute something, to take all memory or to take forever: inert or refused, each in one line."""

import builtins
import functools
import json
import operator
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from weight_files import (
    Call,
    array_bytes,
    npy,
    number,
    saved,
    storage_id,
    tensor_of,
    text,
    torch_zip,
    zipped,
)

from pdiff_hf.data.importing.archive import read_archive
from pdiff_hf.data.importing.placeholder import Placeholder, state_of_module

TOUCH = "touch executed"
WRITE = "open('executed', 'w')"

# What is executed by whoever unpickles it. Each is read in four containers, and none may leave a file.
CALLS = {
    "os.system": lambda: Call(os.system, TOUCH),
    "subprocess": lambda: Call(subprocess.check_call, ["touch", "executed"]),
    "eval": lambda: Call(eval, WRITE),
    "exec": lambda: Call(exec, WRITE),
    "open": lambda: Call(open, "executed", "w"),
    "getattr": lambda: Call(Call(getattr, Call(__import__, "os"), "system"), TOUCH),
    "partial": lambda: Call(Call(functools.partial, os.system, TOUCH)),
    "attrgetter": lambda: Call(Call(Call(operator.attrgetter, "system"), Call(__import__, "os")), TOUCH),
    "methodcaller": lambda: Call(Call(operator.methodcaller, "system", TOUCH), Call(__import__, "os")),
    "map": lambda: Call(list, Call(map, os.system, [TOUCH])),
    "apply": lambda: Call(builtins.__build_class__, Call(eval, WRITE), "x"),
    "hub": lambda: Call(torch.hub.load, ".", "executed"),
    "torch.load": lambda: Call(torch.load, "executed"),
    "numpy.load": lambda: Call(np.load, "executed"),
    "pickle.loads": lambda: Call(pickle.loads, pickle.dumps(Call(os.system, TOUCH))),
    "load_from_bytes": lambda: Call(torch.storage._load_from_bytes, saved(Call(os.system, TOUCH))),
    "state": lambda: StateOf(),
    "subclass": lambda: Call(torch._tensor._rebuild_from_type_v2, os.system, str, (TOUCH,), {}),
    "codecs": lambda: Call(__import__("codecs").decode, Call(eval, WRITE), "rot13"),
}
CONTAINERS = {
    "zip": lambda value: saved({"model": {"weight": torch.ones(2)}, "x": value}),
    "legacy": lambda value: saved({"x": value, "w": torch.ones(2)}, _use_new_zipfile_serialization=False),
    "pickle": lambda value: pickle.dumps({"x": value}, 4),
    "protocol 0": lambda value: pickle.dumps({"x": value}, 0),
}


class StateOf:
    """Whose state would be set by a method of its class."""

    def __reduce__(self):
        return Call, (print,), {"x": Call(os.system, TOUCH)}

    def __setstate__(self, state):
        open("executed", "w").close()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("call", CALLS)
def test_calls_are_not_made(tmp_path, monkeypatch, call, container):
    monkeypatch.chdir(tmp_path)
    data = CONTAINERS[container](CALLS[call]())
    for made in tmp_path.iterdir():
        made.unlink()
    file = tmp_path / "a.pt"
    file.write_bytes(data)
    try:
        value = read_archive(file, "a.pt")
    except ValueError as error:
        assert str(error).startswith("a.pt") and len(str(error).splitlines()) == 1
    else:
        assert isinstance(value, dict) and type(value["x"]) in (Placeholder, list)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def linked(levels):
    """Containers of twice the last one: linear to read, exponential to walk through."""
    return b"\x80\x02]" + b"2\x86" * levels + b"."


def header(length, text=b"{}"):
    return struct.pack("<Q", length) + text


def safetensors(**tensors):
    head = json.dumps(tensors).encode()
    return struct.pack("<Q", len(head)) + head + bytes(64)


F32 = {"dtype": "F32", "shape": [4]}
FLOATS = torch_zip(tensor_of())
OLD = saved({"w": torch.arange(4.0)}, _use_new_zipfile_serialization=False)
NEW = saved({"w": torch.arange(4.0)})
NPZ = zipped({"w.npy": array_bytes(np.arange(4.0))})
DAMAGED = "is no complete"
LENGTH = "is no complete|asks for more memory"
REFUSED = "expected weights, found"


def changed_zip(**changes):
    """The archive of a tensor whose first entry in the list of members is changed."""
    data = bytearray(FLOATS)
    start = data.rfind(b"PK\x01\x02")
    places = {"flags": (8, "<H"), "method": (10, "<H"), "size": (24, "<I"), "offset": (42, "<I")}
    for name, value in changes.items():
        place, form = places[name]
        struct.pack_into(form, data, start + place, value)
    return bytes(data)


HOSTILE = {
    # Operations of pickles
    "persistent id of a path": (torch_zip(tensor_of(storage_id("../../../../etc/passwd"))), DAMAGED),
    "persistent id of the root": (torch_zip(tensor_of(storage_id("/etc/passwd"))), DAMAGED),
    "persistent id of no storage": (torch_zip(b"\x80\x02" + text("/etc/passwd") + b"Q."), DAMAGED),
    "persistent id as a line": (torch_zip(b"\x80\x02P/etc/passwd\n."), DAMAGED),
    "persistent id of an unknown type": (torch_zip(tensor_of(storage_id(kind="Storage"))), DAMAGED),
    "persistent id without archive": (tensor_of(), DAMAGED),
    "class that is called by its dotted name": (b"\x80\x04" + text("os") + text("path.os.system") + b"\x93.", None),
    "name with line ends": (b"\x80\x04" + text("os\n\x1b[2J") + text("x" * 10**6) + b"\x93.", None),
    "name that is no text": (b"\x80\x04K\x01K\x02\x93.", DAMAGED),
    "extension 1": (b"\x80\x02\x82\x01.", DAMAGED),
    "extension 2": (b"\x80\x02\x83\x01\x00.", DAMAGED),
    "extension 4": (b"\x80\x02\x84\x01\x00\x00\x00.", DAMAGED),
    "buffer outside": (b"\x80\x05\x97.", DAMAGED),
    "call of a string": (b"\x80\x02" + text("os.system") + b")R.", DAMAGED),
    "call without arguments": (b"\x80\x02cos\nsystem\nNR.", DAMAGED),
    "instance of old": (b"(ios\nsystem\n.", None),
    "object of old": (b"\x80\x02(cos\nsystem\n" + text(TOUCH) + b"o.", None),
    "new with keywords": (b"\x80\x04cos\nsystem\n)}\x92.", None),
    "stack that is empty": (b"\x80\x02.", DAMAGED),
    "stack that is used up": (b"\x80\x020000.", DAMAGED),
    "no mark": (b"\x80\x02t.", DAMAGED),
    "memo that is empty": (b"\x80\x02h\x05.", DAMAGED),
    "no end": (b"\x80\x02]", DAMAGED),
    "more behind the end": (b"\x80\x02].].", DAMAGED),
    "memo of 2^31": (b"\x80\x02Nr\xff\xff\xff\x7f.", None),
    "elements of a string": (b"\x80\x02" + text("x") + b"Na.", DAMAGED),
    "items of a list": (b"\x80\x02]NNs.", DAMAGED),
    "list as a key": (b"\x80\x02}]Ns.", DAMAGED),
    # Lengths
    "string of 4 GB": (b"\x80\x02X\xff\xff\xff\xff.", LENGTH),
    "string of 2^62": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".", LENGTH),
    "bytes of 2^62": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".", LENGTH),
    "bytes of negative length": (b"\x80\x02T\xff\xff\xff\xff.", DAMAGED),
    "bytearray of 2^40": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", LENGTH),
    "frame of 2^62": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", None),
    "integer of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", LENGTH),
    "integer of 100,000 bytes": (b"\x80\x02\x8b" + struct.pack("<i", 10**5) + b"\x01" * 10**5 + b".", DAMAGED),
    "integer of 10^6 digits": (b"\x80\x02L" + b"9" * 10**6 + b"L\n.", DAMAGED),
    "line of 10 MB": (b"\x80\x02c" + b"x" * 10**7, DAMAGED),
    # Containers without end
    "list in itself": (b"\x80\x02]q\x00h\x00a.", REFUSED),
    "dict in itself": (b"\x80\x02}q\x00Nh\x00s.", REFUSED),
    "list in itself through a tuple": (b"\x80\x02]q\x00h\x00\x85a.", REFUSED),
    "200 lists": (b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".", REFUSED),
    "2^60 lists": (linked(60), REFUSED),
    "hash of 2^60 tuples": (b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns.", None),
    "hash of 10^5 tuples": (b"\x80\x02})" + b"\x85" * 10**5 + b"Ns.", None),
    # Tensors
    "tensor beyond its storage": (torch_zip(tensor_of(size=(5,))), DAMAGED),
    "offset beyond its storage": (torch_zip(tensor_of(offset=1)), DAMAGED),
    "negative offset": (torch_zip(tensor_of(offset=-1)), DAMAGED),
    "stride beyond its storage": (torch_zip(tensor_of(size=(2,), stride=(4,))), DAMAGED),
    "negative stride": (torch_zip(tensor_of(offset=3, stride=(-1,))), DAMAGED),
    "size of 2^62": (torch_zip(tensor_of(size=(2**62,))), DAMAGED),
    "size that overflows": (torch_zip(tensor_of(size=(2**32, 2**32), stride=(2**33, 1))), DAMAGED),
    "expanded to 2^40": (torch_zip(tensor_of(size=(2**40,), stride=(0,))), REFUSED),
    "size 0 of 2^70": (torch_zip(tensor_of(size=(0, 2**70), stride=(1, 1))), DAMAGED),
    "size that is text": (torch_zip(tensor_of(size="abcd")), DAMAGED),
    "100 dimensions": (torch_zip(tensor_of(size=(1,) * 100, stride=(1,) * 100)), DAMAGED),
    "storage larger than its member": (torch_zip(tensor_of(storage_id(numel=2**40))), DAMAGED),
    "storage that is missing": (torch_zip(tensor_of(storage_id("7"))), DAMAGED),
    "tensor of a string": (torch_zip(tensor_of(text("../data/0"))), DAMAGED),
    "legacy storage of 2^50": (OLD.replace(b"K\x04N", b"\x8a\x07" + (2**50).to_bytes(7, "little") + b"N", 1), DAMAGED),
    "array larger than its bytes": (
        pickle.dumps(np.zeros(4), 4).replace(b"K\x04\x85", b"J\x00\x00\x00\x7f\x85", 1),
        DAMAGED,
    ),
    # Archives
    "members with paths": (torch_zip(tensor_of(), **{"../../executed": b"x", "/executed": b"x"}), None),
    "symbolic link": (zipped({"archive/data.pkl": b"/etc/passwd"}), DAMAGED),
    "member beyond the archive": (changed_zip(size=2**31), DAMAGED),
    "member at another place": (changed_zip(offset=7), DAMAGED),
    "encrypted": (changed_zip(flags=1), "an encrypted archive"),
    "unusual compression": (changed_zip(method=14), "compressed in an unusual way"),
    "bytes before the archive": (b"PK\x03\x04" + bytes(100) + FLOATS, DAMAGED),
    "no members": (zipped({}), "a zip archive of nothing"),
    "policy within policies": (zipped({"policy.pth": zipped({"policy.pth": NEW})}), "a zip archive of policy.pth"),
    "names of several lines": (zipped({"a\nb\x1b[2J": b""}), "a zip archive of a[?]b"),
    "two data.pkl": (zipped({"a/data.pkl": b"\x80\x02N.", "b/data.pkl": b"\x80\x02N."}), "a zip archive of a/data"),
    # Headers
    "safetensors header of 2^60": (header(2**60), DAMAGED),
    "safetensors header beyond the file": (header(2**20), DAMAGED),
    "safetensors header that is nested": (header(10**5, b'{"a":' * 20_000), DAMAGED),
    "safetensors beyond the file": (safetensors(a={**F32, "data_offsets": [0, 2**40]}), DAMAGED),
    "safetensors that overlap": (
        safetensors(a={**F32, "data_offsets": [0, 16]}, b={**F32, "data_offsets": [8, 24]}),
        DAMAGED,
    ),
    "safetensors of another size": (safetensors(a={**F32, "data_offsets": [0, 64]}), DAMAGED),
    "npz of objects": (zipped({"a.npy": array_bytes(np.array([Call(os.system, TOUCH)]), allow_pickle=True)}), None),
    "npz of 2^60 values": (
        zipped({"a.npy": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976,)}")}),
        DAMAGED,
    ),
    "npz with a call": (zipped({"a.npy": npy(f"{{'descr': {WRITE}, 'fortran_order': False, 'shape': ()}}")}), DAMAGED),
    "npz with nested header": (zipped({"a.npy": npy("(" * 100)}), DAMAGED),
    # What was cut off
    "empty": (b"", DAMAGED),
    **{
        f"{name} cut at {share}": (data[: int(len(data) * share)], f"{DAMAGED}|{REFUSED}")
        for name, data in {"zip": NEW, "legacy": OLD, "npz": NPZ, "pickle": pickle.dumps({"a": np.ones(9)})}.items()
        for share in (0.01, 0.1, 0.5, 0.9, 0.999)
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_inert_or_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, message = HOSTILE[name]
    file = tmp_path / "a.bin"
    file.write_bytes(data)
    start = time.process_time()
    if message is None:
        value = read_archive(file, "a.bin")
        assert len(repr(value)) < 10**6
    else:
        with pytest.raises(ValueError, match=message) as caught:
            read_archive(file, "a.bin")
        assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable()
        assert len(str(caught.value)) < 800
    assert time.process_time() - start < 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def shared_modules(levels):
    """Modules of twice the one below: linear to read, exponential in the names of their tensors."""
    attributes = b"}(" + text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules") + b"}("
    module = b"cmodule\nModule\n)R" + attributes
    pickled = module + b"uub"
    for _ in range(levels):
        pickled += b"q\x000" + module + text("a") + b"h\x00" + text("b") + b"h\x00" + b"uub"
    return b"\x80\x02" + pickled + b"."


def deflated(members):
    return zipped(members, zipfile.ZIP_DEFLATED)


ZEROS = 2**27
DECODED = b"c_codecs\nencode\nq\x00" + text("a" * 10**7) + text("latin1") + b"\x86q\x01"
BOMBS = {
    "10^6 memo entries": lambda: b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", i) for i in range(10**6)) + b".",
    "2 10^6 lists": lambda: b"\x80\x02" + b"]" * 2 * 10**6 + b".",
    "700,000 nested lists": lambda: b"\x80\x02" + b"]" * 700_000 + b"a" * 699_999 + b".",
    "10^6 nested tuples": lambda: b"\x80\x02)" + b"\x85" * 10**6 + b".",
    "150,000 nested calls": lambda: b"\x80\x02" + b"cos\nsystem\n" * 150_000 + b"N" + b"\x85R" * 150_000 + b".",
    "150,000 nested states": lambda: b"\x80\x02" + b"cos\nsystem\n)R" * 150_000 + b"b" * 149_999 + b".",
    "2 10^6 names": lambda: b"\x80\x02" + b"cos\nsystem\n" * 2 * 10**6 + b".",
    "10 MB decoded 10^5 times": lambda: b"\x80\x02" + DECODED + b"h\x00h\x01R" * 10**5 + b".",
    "keys of one hash": lambda: (
        b"\x80\x02}(" + b"".join(number(k * (2**61 - 1) + 2**70) + b"N" for k in range(20_000)) + b"u."
    ),
    "modules of 2^90 names": lambda: shared_modules(90),
    "data.pkl of zeros": lambda: torch_zip(bytes(ZEROS), zipfile.ZIP_DEFLATED),
    "storage of zeros": lambda: torch_zip(
        tensor_of(storage_id(numel=ZEROS // 4)), zipfile.ZIP_DEFLATED, **{"data/0": bytes(ZEROS)}
    ),
    "npz of zeros": lambda: deflated({"a.npy": array_bytes(np.zeros(ZEROS, "u1"))}),
    "npz of many zeros": lambda: deflated({f"{i}.npy": array_bytes(np.zeros(2**21)) for i in range(9)}),
    "50,000 members": lambda: zipped({f"{i}": b"" for i in range(50_000)}),
    "JSON of 200,000 levels": lambda: header(1_200_001, b'{"a":' + b'{"a":[' * 200_000),
}


def peak():
    """Bytes that this program has had at most; those of the process it was started by do not count."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def read_all(folder):
    """Run in a process of its own: reads every file, and prints what was said and what it took."""
    before = peak()
    for name in BOMBS:
        start = time.process_time()
        try:
            said = str(state_of_module(read_archive(folder / name, "a.bin")))
        except ValueError as error:
            said = str(error)
        print(json.dumps([name, said, time.process_time() - start, (peak() - before) / 1e9]))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux does")
def test_bombs_take_neither_long_nor_much_memory(tmp_path):
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    code = "import sys, pathlib, test_hostile_files; test_hostile_files.read_all(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in found] == list(BOMBS)
    for name, said, seconds, gigabytes in found:
        assert len(said.splitlines()) == 1 and seconds < 5 and gigabytes < 1, (name, said, seconds, gigabytes)


def test_list_of_members_is_bounded(tmp_path, monkeypatch):
    file = tmp_path / "a.pt"
    file.write_bytes(zipped({f"{i}": b"" for i in range(100)}))
    monkeypatch.setattr("pdiff_hf.data.importing.zips.DIRECTORY_BYTES", 1000)
    with pytest.raises(ValueError, match="an archive whose list of members has 4,"):
        read_archive(file, "a.pt")
