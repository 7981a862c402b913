"""Autoencoders and denoisers."""

from importlib import import_module


# Imported on first use, so that a file of this package never loads its neighbours.
def __getattr__(name: str):
    if name[:1].isupper() and name in (classes := import_module(".auto", __name__).own_classes()):
        return classes[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
