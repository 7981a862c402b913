"""How the libraries build a network by its name and arguments, and what a name from a file may not make them do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .own_code import load_object, plain_reference
from .trust import may_run
from .wording import argument

# Libraries are imported by whoever builds: reading a reference would wait for them.
if TYPE_CHECKING:
    from torch import nn

# What files call the module `networks`. A reference may come from a downloaded file: no other function of this package
# may be called with its arguments.
OWN_FACTORIES = "pdiff_hf.tasks.networks"

# Arguments by which a reference would name files outside of its own folder.
FILE_ARGUMENTS = {
    "timm": ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir"),
    "torchvision": (),
    "transformers": ("backbone", "use_pretrained_backbone", "use_timm_backbone", "pretrained_cfg"),
    "diffusers": (),
    "import": (),
}
LIBRARIES = tuple(FILE_ARGUMENTS)


def check_arguments(library: str, name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments of a builder that are malformed, or that name files or code elsewhere; `ValueError`."""
    arguments = kwargs
    if library in ("transformers", "diffusers"):
        arguments = kwargs.get("config")
        key = "model_type" if library == "transformers" else "_class_name"
        if not isinstance(arguments, dict) or key not in arguments:
            raise ValueError(f"base model: {library} needs kwargs {{'config': …}} with its {key!r}.")
    for scope in (arguments, arguments.get("backbone_config") or {}):
        for argument_name in FILE_ARGUMENTS[library]:
            if scope.get(argument_name):
                raise ValueError(f"base model: {name!r} may not take {argument_name!r}, which can name other files.")
        # Attention whose name has a slash is code on the Hub.
        attention = [str(scope.get(key)) for key in ("attn_implementation", "_attn_implementation")]
        if library == "transformers" and any("/" in key for key in attention):
            raise ValueError(f"base model: {name!r} may not take attention from the Hub, found {attention}.")


def build_network(
    library: str, name: str, kwargs: Mapping[str, Any], *, pretrained: bool, trusted_imports: Sequence[str]
) -> nn.Module:
    """The network of a library, as it initialises it.

    Args:
        library, name, kwargs: As in [`BaseModel`].
        pretrained (`bool`): Whether arguments may ask for the library's own weights, which it then downloads.
        trusted_imports (`Sequence[str]`): Modules and factories that may be imported.

    Raises:
        ValueError: the name is unknown or may not be imported, or does not take the arguments.
    """
    if library == "import":
        factory = _factory(name, kwargs, trusted_imports)
        if not pretrained and is_own_factory(name):
            kwargs = _without(kwargs, ("pretrained",))
        try:
            return factory(**kwargs)
        except TypeError as error:
            given = argument("kwargs", "{…}", "'{…}'")
            raise ValueError(f"base model: {name!r} does not take its arguments: {error}; give {given}.") from error
    return _BUILDERS[library](name, kwargs, pretrained)


def _timm(name: str, kwargs: Mapping[str, Any], pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"base model: timm {timm.__version__} has no model {name!r}.")
    return timm.create_model(name, **(kwargs if pretrained else {**kwargs, "pretrained": False}))


def _torchvision(name: str, kwargs: Mapping[str, Any], pretrained: bool) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models():
        raise ValueError(f"base model: torchvision {torchvision.__version__} has no model {name!r}.")
    weights = ("weights", "weights_backbone")
    return torchvision.models.get_model(name, **(kwargs if pretrained else _without(kwargs, weights)))


def _transformers(name: str, kwargs: Mapping[str, Any], pretrained: bool) -> nn.Module:
    import transformers

    architecture = getattr(transformers, name, None)
    if not (isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)):
        raise ValueError(f"base model: transformers {transformers.__version__} has no model {name!r}.")
    config = transformers.AutoConfig.for_model(**kwargs["config"])
    if not isinstance(config, architecture.config_class):
        raise ValueError(
            f"base model: {name} expects a {architecture.config_class.__name__}, found {type(config).__name__}."
        )
    return architecture(config)


def _diffusers(name: str, kwargs: Mapping[str, Any], pretrained: bool) -> nn.Module:
    import diffusers

    architecture = getattr(diffusers, name, None)
    if not (isinstance(architecture, type) and issubclass(architecture, diffusers.ModelMixin)):
        raise ValueError(f"base model: diffusers {diffusers.__version__} has no model {name!r}.")
    return architecture.from_config(kwargs["config"])


_BUILDERS: dict[str, Callable[[str, Mapping[str, Any], bool], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "diffusers": _diffusers,
}


def is_own_factory(name: str) -> bool:
    """Whether a name is that of a network of this package."""
    return plain_reference(name).rpartition(":")[0] == OWN_FACTORIES


def timm_name(library: str, name: str, kwargs: Mapping[str, Any]) -> str | None:
    """The model of timm that a reference is about, `None` of others."""
    if library == "timm":
        return name
    return kwargs.get("model") if library == "import" and name == f"{OWN_FACTORIES}:timm_with_head" else None


def _without(kwargs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def _factory(name: str, kwargs: Mapping[str, Any], trusted_imports: Sequence[str]) -> Callable[..., nn.Module]:
    name = plain_reference(name)
    module, _, factory = name.rpartition(":")
    if not module or not factory:
        raise ValueError(f"base model: expected a factory 'package.module:name' or 'file.py:name', found {name!r}.")
    if is_own_factory(name):
        from . import networks

        if not callable(found := vars(networks).get(factory)):
            raise ValueError(f"base model: {OWN_FACTORIES} has no network {factory!r}.")
        return found
    if not may_run(name, kwargs, trusted_imports):
        trust = argument("trusted_imports", f"[{name!r}]", name, "base_model.trusted_imports")
        raise ValueError(
            f"base model: {name!r} is not of {OWN_FACTORIES}, whose code alone is run unasked; "
            f"if you trust its code, give {trust}."
        )
    try:
        found = load_object(name)
    except ValueError as error:
        raise ValueError(f"base model: cannot import {error}") from error
    if not callable(found):
        raise ValueError(f"base model: expected a class or function {name!r}, found {type(found).__name__}.")
    return found
