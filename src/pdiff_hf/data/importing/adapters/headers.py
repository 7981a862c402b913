"""What names and shapes alone say against an adapter, found before the libraries that do the work are imported."""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ....adapters.config import AdapterConfig
from ....files import errors_of
from ....hub.snapshot import some_of

# Type and shape of a tensor by its name in the file.
Header = Mapping[str, tuple[str, tuple[int, ...]]]

PREFIX = "base_model.model."
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
KOHYA = re.compile(r"^lora_(te\d*|unet|transformer)_|\.lora_(down|up)\.|\.alpha$")
FACTOR = re.compile(r"\.lora_(embedding_)?([AB])(?=\.|$)")
# Behind the name of a layer, and maybe the name of an adapter.
OF_LAYERS = re.compile(
    r"\.(?:lora_(?:embedding_)?[AB]|lora_magnitude_vector|ia3_l|vera_lambda_[bd])(?:\.(?!weight$|bias$)([^.]+))?"
    r"(?:\.weight|\.bias)?$"
)
# What a file of tensors names of other modules.
IN_PICKLES = re.compile(r"(torch(\._utils|\.storage|\.nn\.parameter|\.serialization)?|collections|_codecs) \w+")
# Values that are looked through before anything else is imported.
MAX_EARLY_BYTES = 2**27


def read_header(file: Path) -> Header:
    """Types and shapes of the tensors of a safetensors file; of others, which are read as a whole, none.

    Raises:
        ValueError: the file is damaged, or a pickle that names something else than tensors.
    """
    if file.suffix != ".safetensors":
        _check_pickle(file)
        return {}
    with (
        errors_of(f"{file.name} is no complete safetensors file", SafetensorError),
        safe_open(file, framework="numpy") as opened,
    ):
        slices = {name: opened.get_slice(name) for name in opened.keys()}
        return {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}


def check_early(file: Path, config: AdapterConfig, base: str) -> None:
    """Raise `ValueError` for an adapter whose names, shapes or values say that it cannot be imported.

    `base` may be the folder of a model, whose shapes are then compared.
    """
    header = read_header(file)
    if not header:
        return
    check_header(header, config)
    if file.stat().st_size <= MAX_EARLY_BYTES:
        _check_finite(file, header)
    weights = Path(base).expanduser() / "model.safetensors"
    if weights.is_file():
        _check_base(header, read_header(weights))


def check_header(header: Header, config: AdapterConfig) -> None:
    """Raise `ValueError` for names that peft would not load, and for shapes and types that are no adapter's.

    What a configuration builds around a base is not known here.
    """
    values = config.values
    targets = values["target_modules"]
    for name, (kind, shape) in header.items():
        if KOHYA.search(name):
            raise ValueError(
                f"tensor {name!r:.120}: kohya's format, whose names cannot be undone; convert it with diffusers "
                "(load_lora_weights, then save_lora_adapter), or take the adapter that peft saved."
            )
        found = OF_LAYERS.search(name)
        if found is not None and found[1] not in (None, "default"):
            raise ValueError(
                f"tensor {name!r:.160} carries the name of an adapter, {found[1]!r:.40}, with which peft loads "
                "nothing; take it out of the names, or save it with PeftModel.save_pretrained."
            )
        if found is not None and not name.startswith(PREFIX):
            begin = name.split(".")[0]
            raise ValueError(
                f"tensor {name!r:.160}: names begin with '{begin:.40}.', where peft has {PREFIX!r} and loads nothing "
                "of others; rename them."
            )
        if 0 in shape:
            raise ValueError(
                f"tensor {name!r:.160} has shape {shape}: saved without gathering, as ZeRO-3 leaves it; gather "
                "before saving."
            )
        if kind not in FLOATS:
            raise ValueError(f"tensor {name!r:.160}: expected floating-point numbers, found {kind}; save it as such.")
        layer = None if found is None else name[len(PREFIX) : found.start()]
        if layer is not None and isinstance(targets, list) and not _is_target(layer, targets):
            raise ValueError(
                f"tensor {name!r:.160} is of no layer that the config targets, which are {some_of(targets)}."
            )
    _check_parts(header, config)


def _is_target(layer: str, targets: list[str]) -> bool:
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def _check_parts(header: Header, config: AdapterConfig) -> None:
    """What belongs together is there, and of the rank that the config says."""
    values, layers = config.values, {}
    for name, (_, shape) in header.items():
        if (found := FACTOR.search(name)) is not None and not name.endswith(".bias"):
            layers.setdefault(name[: found.start()], {})[found[2]] = name
            rank = shape[0] if found[2] == "A" else None
            if rank not in (None, values.get("r")) and not values.get("rank_pattern"):
                raise ValueError(
                    f"tensor {name!r:.160} has rank {rank}, where the config says r = {values.get('r')}; correct it."
                )
    for layer, parts in layers.items():
        if missing := {"A", "B"} - parts.keys():
            raise ValueError(f"layer {layer!r:.160} has no lora_{min(missing)}: the adapter was not saved whole.")
        if values.get("use_dora") and not any(name.startswith(f"{layer}.lora_magnitude_vector") for name in header):
            raise ValueError(
                f"layer {layer!r:.160} has no lora_magnitude_vector, where the config says use_dora: the adapter was "
                "not saved whole, or is none of DoRA."
            )
    heads = values.get("modules_to_save") or ()
    others = [name for name in header if OF_LAYERS.search(name) is None and "vera_" not in name]
    if heads and not any(f".{head}." in name for name in others for head in heads):
        raise ValueError(
            f"modules_to_save names {some_of(heads)}, and no tensor is of any: the head was not saved, and would be "
            "random."
        )


def _check_finite(file: Path, header: Header) -> None:
    raw = np.memmap(file, np.uint8, "r")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    places = json.loads(raw[8 : 8 + length].tobytes())
    for name, (kind, _) in header.items():
        start, stop = (8 + length + offset for offset in places[name]["data_offsets"])
        values = np.frombuffer(raw[start:stop].tobytes(), FLOATS[kind])
        # Of bfloat16: all bits of the exponent are set.
        finite = (values & 0x7F80) != 0x7F80 if kind == "BF16" else np.isfinite(values)
        if not finite.all():
            raise ValueError(f"tensor {name!r:.160} has a NaN or infinite value; leave this adapter out.")


def _check_base(header: Header, base: Header) -> None:
    """Factors fit the layers of a base, where its file calls them alike."""
    for name, (_, shape) in header.items():
        found = FACTOR.search(name)
        if found is None or name.endswith(".bias"):
            continue
        weight = f"{name[len(PREFIX) : found.start()]}.weight"
        width = shape[1] if found[2] == "A" else shape[0]
        own = base.get(weight, (None, ()))[1]
        if len(own) == 2 and width not in own:
            raise ValueError(
                f"tensor {name!r:.160} has shape {shape}, where the base's {weight!r:.120} has {own}: the adapter was "
                "trained on another base than --base."
            )


def _check_pickle(file: Path) -> None:
    """Refuse a file of torch.save that names what tensors are not made of, without reading its objects."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickles) != 1 or archive.getinfo(pickles[0]).file_size > MAX_EARLY_BYTES:
                return
            content = archive.read(pickles[0])
        named = [str(value) for op, value, _ in pickletools.genops(content) if op.name == "GLOBAL"]
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError):
        # Whoever reads it as a whole says what it is.
        return
    if other := [name.replace(" ", ".") for name in named if not IN_PICKLES.fullmatch(name)]:
        raise ValueError(
            f"{file.name}: expected tensors by their names, found an object of {other[0]:.80}, whose code would run; "
            "nothing of it was run."
        )


def header_of(values: Mapping[str, Any]) -> Header:
    """Types, as safetensors calls them, and shapes of tensors that were read."""
    kinds = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
    return {
        name: (kinds.get(str(value.dtype), str(value.dtype).removeprefix("torch.")), tuple(value.shape))
        for name, value in values.items()
    }
