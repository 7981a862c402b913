"""Sections of a recipe that come in several kinds, told apart by their key `kind`."""

from __future__ import annotations

from collections.abc import KeysView, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from pydantic import BaseModel, GetCoreSchemaHandler, PlainValidator, TypeAdapter, create_model


@dataclass(frozen=True)
class OneOf:
    """A union of sections, discriminated by `kind`: `Annotated[AutoencoderConfig, OneOf(AUTOENCODERS, "pdiff")]`.

    The table is looked up whenever values are validated, so what is put into it later is known as well.

    A section that names no kind is of the `default` one, or of that of its preset in `of_presets`.
    """

    kinds: Mapping[str, type[BaseModel]]
    default: str
    of_presets: Mapping[str, str] = field(default_factory=dict)

    def kind_of(self, values: Any) -> Any:
        """The kind that a section names."""
        if not isinstance(values, Mapping):
            return self.default
        return values.get("kind", self.of_presets.get(str(values.get("preset")), self.default))

    def keys(self, kind: str | None = None) -> KeysView[str]:
        """Keys of a kind, or of all, in order."""
        sections = self.kinds.values() if kind is None else [self.kinds[kind]]
        return dict.fromkeys(key for section in sections for key in section.model_fields).keys()

    def validate(self, values: Any) -> BaseModel:
        """The section of its kind; the errors are pydantic's own."""
        if isinstance(values, tuple(self.kinds.values())):
            return values
        values = TypeAdapter(dict[str, Any]).validate_python(values)
        named = create_model("Named", kind=(Literal[tuple(self.kinds)], ...))
        return self.kinds[named(kind=self.kind_of(values)).kind].model_validate(values)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        # Not `source`, the sections' base, whose keys alone would be written out.
        return PlainValidator(self.validate).__get_pydantic_core_schema__(Any, handler)


def by_kind(*sections: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The table of these sections: the default of each one's field `kind` → the section."""
    return {section.model_fields["kind"].default: section for section in sections}


def load_class(path: str) -> type:
    """The class `"package.module:name"`: a section names what it builds so, and is read without importing that."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def without_foreign_keys(
    sections: Mapping[str, OneOf], values: Mapping[str, Any], written: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Values of a recipe without keys that other kinds of a section have and its own has not.

    For values that were written for any kind, such as a profile's, or for all of them, as version 0.1 recorded its
    recipes. What the user has written stays, and is refused when it is validated. All mappings are by section.
    """
    kept = dict(values)
    for name, union in sections.items():
        section = values.get(name)
        if not isinstance(section, Mapping) or (kind := union.kind_of(section)) not in list(union.kinds):
            continue
        own = (written or {}).get(name)
        foreign = union.keys() - union.keys(kind) - set(own if isinstance(own, Mapping) else ())
        kept[name] = {key: value for key, value in section.items() if key not in foreign}
    return kept
