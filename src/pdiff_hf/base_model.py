"""Reference to the full network around the generated tensors: how it is built, where its other weights are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .adapters.config import read_adapter_config
from .builders import LIBRARIES, build_network, check_arguments
from .files import atomic_write, errors_of, sha256_file

# A recipe or a folder is described by a reference: what builds the network and reads its weights is imported then.
if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

    from .layout import ParameterLayout

KEYS = ("library", "name", "kwargs", "weights", "sha256")
HUB_KEYS = ("repo", "revision")
ADAPTER_KEYS = ("adapter",)
WEIGHTS = "base/model.safetensors"


@dataclass(frozen=True)
class BaseModel:
    """Reference to a full network: an architecture, and a weights file inside the folder `root` of an artefact.

    Args:
        library (`str`): `"timm"`, `"torchvision"`, `"transformers"`, `"diffusers"` or `"import"`.
        name (`str`): Name of a model of timm or torchvision, of a class of transformers or diffusers, or
            `"package.module:factory"` or `"path/file.py:factory"`.
        kwargs (`dict`): JSON-able arguments of the builder; for transformers and diffusers `{"config": {…}}`.
        weights (`str`, *optional*): Path of a safetensors file relative to `root`, always inside it.
        sha256 (`str`, *optional*): Hash of the weights file.
        repo (`str`, *optional*): Model repository on the Hub that has the weights file, instead of the own folder.
        revision (`str`, *optional*): Commit of `repo`, 40 hexadecimal digits.
        adapter (`dict`, *optional*): Configuration of a PEFT adapter around the network, as `adapter_config.json` has
            it; the network then is a `PeftModel`, and the weights file has an adapter in it.
        root (`Path`, *optional*): Folder of the artefact; neither serialised nor compared.
        trusted_imports (`tuple[str, ...]`, *optional*): Modules (`"mypackage"`, with all below) or factories
            (`"mypackage.nets:small"`) that may be imported and called beside those of `pdiff_hf.tasks.networks`; given
            by whoever uses the reference, neither serialised nor compared.

    Raises:
        ValueError: the library is unknown, or an argument or path leaves the folder or is malformed.
    """

    library: str
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    sha256: str | None = None
    repo: str | None = None
    revision: str | None = None
    adapter: dict[str, Any] | None = None
    root: Path | None = field(default=None, compare=False)
    trusted_imports: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self):
        if self.library not in LIBRARIES:
            raise ValueError(f"base model: library must be one of {LIBRARIES}, found {self.library!r}.")
        if not isinstance(self.name, str) or not isinstance(self.kwargs, Mapping):
            raise ValueError(f"base model: expected a name and a dict of arguments, found {self.name!r}.")
        if (self.weights is None) != (self.sha256 is None):
            raise ValueError("base model: expected weights together with their sha256, found only one of them.")
        is_remote = self.repo is not None or self.revision is not None
        is_pinned = self.weights and self.repo and re.fullmatch(r"[0-9a-f]{40}", str(self.revision))
        if is_remote and not is_pinned:
            raise ValueError(
                "base model: weights on the Hub need repo, weights, sha256 and a revision, a commit of 40 digits, "
                f"found {self.repo!r} at {self.revision!r}."
            )
        if self.weights is not None:
            path = PurePosixPath(str(self.weights))
            if path.is_absolute() or ".." in path.parts or set("\\:") & set(str(path)) or str(path) == ".":
                raise ValueError(f"base model: weights must be a path inside its own folder, found {self.weights!r}.")
        with errors_of(f"base model: arguments of {self.name!r} must be JSON-able", TypeError):
            # What a reference is compared with has been JSON once: tuples are lists, keys are strings.
            object.__setattr__(self, "kwargs", json.loads(json.dumps(self.kwargs)))
        check_arguments(self.library, self.name, self.kwargs)
        if self.adapter is not None:
            with errors_of("base model: adapter"):
                object.__setattr__(self, "adapter", read_adapter_config(self.adapter).to_dict())

    @classmethod
    def timm(cls, name: str, **kwargs: Any) -> BaseModel:
        """A model of `timm.create_model(name, **kwargs)`."""
        return cls("timm", name, kwargs)

    @classmethod
    def transformers(cls, config: PretrainedConfig, architecture: str) -> BaseModel:
        """A transformers model by its config and class name, e.g. `"ViTForImageClassification"`."""
        return cls("transformers", architecture, {"config": json.loads(config.to_json_string(use_diff=False))})

    @classmethod
    def imported(cls, path: str, **kwargs: Any) -> BaseModel:
        """A model made by calling `"package.module:factory"` or `"file.py:factory"` with `kwargs`."""
        return cls("import", path, kwargs)

    def build(self, trusted_imports: Sequence[str] = ()) -> nn.Module:
        """Build the network in eval mode and load its weights when it has any, in the types they were saved in.

        `trusted_imports` may be imported beside the reference's own.

        Raises:
            ValueError: the architecture is unknown or may not be imported, or the weights are missing, damaged, of
                another hash or do not fit.
        """
        model = build_network(
            self.library,
            self.name,
            self.kwargs,
            pretrained=self.weights is None,
            trusted_imports=(*self.trusted_imports, *trusted_imports),
        )
        from .weights import put_weights, whole_network

        model = whole_network(model, self.name)
        if self.adapter is not None:
            from .adapters.network import add_adapter

            model = add_adapter(model, self.adapter)
        if self.weights is not None:
            put_weights(model, self.state_dict(), self.weights, self.name)
        return model.eval()

    @property
    def carried_weights(self) -> str | None:
        """Path of the weights file in the own folder; `None` when there is none, or when it is on the Hub."""
        return self.weights if self.repo is None else None

    def with_hub_weights(
        self, repo: str, revision: str | None = None, weights: str = "model.safetensors"
    ) -> BaseModel:
        """This reference with the file `weights` of a model repository on the Hub, pinned by commit and hash.

        Args:
            repo (`str`): `user/name`.
            revision (`str`, *optional*): Branch, tag or commit; the main branch by default.
            weights (`str`, *optional*, defaults to `"model.safetensors"`): Path of the file in the repository.

        Raises:
            ValueError: the Hub cannot be reached, or has no such file.
        """
        from huggingface_hub import HfApi, hf_hub_download

        from .hub.errors import hub_errors

        with hub_errors(repo, revision):
            commit = HfApi().model_info(repo, revision=revision).sha
            path = hf_hub_download(repo, weights, revision=commit)
        return replace(self, weights=weights, sha256=sha256_file(Path(path)), repo=repo, revision=commit)

    def checked_weights(self) -> Path:
        """Path of the weights file, its hash checked; downloaded when it is on the Hub.

        Raises:
            ValueError: there is no weights file, or it is damaged or has another hash.
        """
        if self.weights is None or (self.root is None and self.repo is None):
            raise ValueError("base model: this reference carries no weights; make some with save_weights.")
        if self.repo is not None:
            from huggingface_hub import hf_hub_download

            from .hub.errors import hub_errors

            with hub_errors(self.repo, self.revision):
                path = Path(hf_hub_download(self.repo, self.weights, revision=self.revision))
        else:
            # A symbolic link may lead elsewhere, the Hub's cache is made of them; the hash pins what is read.
            path = Path(self.root) / self.weights
            if not path.is_file():
                raise ValueError(f"base model: expected weights at {path}, found none.")
        stat = path.stat()
        if (found := _hash_once(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)) != self.sha256:
            raise ValueError(
                f"base model: {path} was changed or is damaged: expected sha256 {str(self.sha256)[:12]}…, "
                f"found {found[:12]}…; copy or download it again."
            )
        return path

    def carried_files(self) -> list[str]:
        """Names of the files that this reference has in its own folder, their hashes checked; at most one."""
        if self.carried_weights is None:
            return []
        self.checked_weights()
        return [self.weights]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Read the weights file, its hash checked; tensors that are tied in the network are in it once."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.checked_weights()
        with errors_of(f"base model: {path} is not a valid safetensors file", SafetensorError):
            return load_file(path)

    def adapter_constants(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """The tensors of the adapter that are not among `names`, those of a layout: all adapters share them."""
        from safetensors import safe_open

        from .adapters.folder import is_of_adapter

        if self.adapter is None or self.weights is None:
            return {}
        with safe_open(self.checked_weights(), framework="pt") as file:
            found = [name for name in file.keys() if is_of_adapter(name) and name not in names]
            return {name: file.get_tensor(name) for name in found}

    def save_adapter(self, layout: ParameterLayout, vector: torch.Tensor, folder: str | Path) -> None:
        """Write the values `(D,)` of a layout as a folder that `PeftModel.from_pretrained(base, folder)` loads.

        Raises:
            ValueError: the network has no adapter, or the values do not fit the layout.
        """
        if self.adapter is None:
            raise ValueError(f"expected parameters of an adapter, found those of {self.name} itself; save_weights.")
        from .adapters.folder import write_adapter

        write_adapter(folder, self.adapter, layout.unflatten(vector), self.adapter_constants(layout.names))

    def save_weights(self, model: nn.Module | Mapping[str, torch.Tensor], root: str | Path) -> BaseModel:
        """Write all weights of a network or state dict to `root/base/model.safetensors`, tied ones once.

        Names are the network's own, whatever wraps it. Returns this reference with `weights`, `sha256` and `root` set.

        Raises:
            ValueError: a tensor has no values in memory, or a layer keeps them in a way of its own.
        """
        from safetensors.torch import save_file

        from .weights import take_weights

        tensors = take_weights(model)
        with atomic_write(path := Path(root) / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        return replace(self, weights=WEIGHTS, sha256=sha256_file(path), repo=None, revision=None, root=Path(root))

    def copy_to(self, root: str | Path) -> BaseModel:
        """Copy a carried weights file into the folder of another artefact and return a reference to it there."""
        if self.repo is not None:
            return replace(self, root=Path(root))
        source, target = self.checked_weights(), Path(root) / self.weights
        if source.resolve() != target.resolve():
            with atomic_write(target) as temporary:
                shutil.copyfile(source, temporary)
        return replace(self, root=Path(root))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, without `root`."""
        optional = (*(HUB_KEYS if self.repo else ()), *(ADAPTER_KEYS if self.adapter else ()))
        return {key: vars(self)[key] for key in (*KEYS, *optional)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None, root: str | Path | None = None) -> BaseModel | None:
        """Read `to_dict()` back and check it, `None` as `None`; `root` is the folder that `weights` is relative to."""
        if values is None:
            return None
        if set(values) - {*ADAPTER_KEYS} not in ({*KEYS}, {*KEYS, *HUB_KEYS}):
            raise ValueError(f"base model: expected the keys {sorted(KEYS)}, found {sorted(values)}.")
        return cls(**values, root=None if root is None else Path(root))


def split_reference(text: str) -> tuple[str, str]:
    """Library and name of `"timm:resnet18"`, or of any other; `ValueError` for another form."""
    library, _, name = text.partition(":")
    if library not in LIBRARIES or not name:
        raise ValueError(
            "expected a base model timm:NAME, torchvision:NAME, transformers:CLASS, diffusers:CLASS, "
            f"import:package.module:factory or import:./file.py:factory, found {text!r}."
        )
    return library, name


@lru_cache(maxsize=64)
def _hash_once(path: Path, *state: int) -> str:
    """The hash of a file, which is read again when its `state` is another."""
    return sha256_file(path)
