"""Where in a folder the weights of networks are, as the tools that trained them have left it."""

from __future__ import annotations

import re
from pathlib import Path

from ...files import read_json
from ...hub.snapshot import some_of
from .checkpoint import natural_key
from .state_dict import SAVED_MODELS

TRAINER = re.compile(r"checkpoint-([0-9]{1,18})")

# What lies beside weights: optimisers, schedulers, random states, samplers, scalers and settings.
BESIDE = re.compile(
    r"(?<![a-z])(optim(izer)?(_states)?|(lr_)?scheduler|rng_state|random_states|sampler|scaler|training_args|args|"
    r"dataloader|dl_state_dict|custom_checkpoint|hparams|tokenizer)(?![a-z])",
    re.IGNORECASE,
)
SHARD = re.compile(r"(model|pytorch_model|diffusion_pytorch_model)(\.[a-z0-9]+)?-[0-9]+-of-[0-9]+\.(safetensors|bin)")

# Suffixes that only weights have; with any other one, the content decides.
NAMED = (".safetensors", ".pth", ".pt", ".bin", ".th", ".ckpt", ".pth.tar")

# Files that cannot be read, and are taken so that the reader says how they are converted.
FOREIGN = (".h5", ".hdf5", ".keras", ".onnx", ".gguf", ".msgpack", ".npy", ".pb", ".tflite", ".pt2", ".mar")

# Of folders that lie in one another, each alone, as in `lightning_logs/version_0/checkpoints`.
MAX_CHAIN = 8


def find_runs(folder: Path) -> list[tuple[Path, list[Path]]]:
    """The training runs in a folder: for each, the folder that names it, and its checkpoints in natural order.

    A checkpoint is a file of weights, or the folder of a saved model. A folder of files is a run; where it has only
    folders, those with one checkpoint are a run together, and those with several are a run each.

    Raises:
        ValueError: there is none.
    """
    runs = _runs(folder, levels=1)
    if not runs:
        names = [path.name for path in folder.iterdir()]
        raise ValueError(
            f"{folder}: expected files of weights, a saved model, checkpoint-* folders of a Trainer, or folders of "
            f"these, found {some_of(names)}."
        )
    # `output/checkpoint-*`, as a shell expands it, is one run too.
    return [(owner.parent if TRAINER.fullmatch(owner.name) else owner, places) for owner, places in runs]


def model_config(folder: Path) -> Path | None:
    """The `config.json` of a folder, where it is a model's and not an experiment's."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        values = read_json(file)
    except ValueError:
        return None
    is_model = isinstance(values, dict) and {"model_type", "architecture", "_class_name"} & values.keys()
    return file if is_model else None


def _runs(folder: Path, levels: int, chain: int = MAX_CHAIN) -> list[tuple[Path, list[Path]]]:
    """The runs of [`find_runs`], with this many levels of several folders below, and of single ones any number."""
    if places := _places(folder):
        return [(folder.resolve(), places)]
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    inner.sort(key=lambda path: natural_key(path.name))
    if len(inner) == 1 and chain:
        return _runs(inner[0], levels, chain - 1)
    if not levels:
        return []
    found = [run for path in inner for run in _runs(path, levels - 1)]
    single = [place for _, places in found if len(places) == 1 for place in places]
    together = [(folder.resolve(), single)] if single else []
    return together + [(owner, places) for owner, places in found if len(places) > 1]


def _places(folder: Path) -> list[Path]:
    """The checkpoints that lie in a folder itself."""
    paths = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: natural_key(p.name))
    names = [path.name for path in paths]
    if any(name.endswith(".distcp") for name in names):
        # Folders are looked through without what reads files.
        from .foreign import foreign_folder

        raise ValueError(f"{folder}: {foreign_folder(folder)}")
    if trainer := [path for path in paths if TRAINER.fullmatch(path.name) and path.is_dir()]:
        return trainer
    files = [path for path in paths if not path.is_dir() and not BESIDE.search(path.name)]
    saved = [path for path in files if path.name in SAVED_MODELS or SHARD.fullmatch(path.name)]
    others = [path for path in files if path not in saved]
    # What has the name of weights is enough: beside it, a pickle or an archive holds anything.
    weights = [path for path in others if path.name.endswith(NAMED)] or [p for p in others if is_weights(p)]
    if saved and not weights:
        return [folder]
    if "adapter_config.json" in names:
        # Whoever reads it says what to do.
        return [folder]
    whole = [path for path in saved if path.name in SAVED_MODELS and path.suffix != ".json"]
    found = sorted([*whole, *weights], key=lambda path: natural_key(path.name))
    return found or [path for path in files if path.suffix in FOREIGN]


def is_weights(path: Path) -> bool:
    """Whether a file begins as safetensors, archives of torch and numpy, or pickles do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    is_pickle = len(start) > 2 and start[0] == 0x80 and start[1] in range(2, 6)
    is_safetensors = len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**32
    return start.startswith(b"PK") or is_pickle or is_safetensors
