"""Evaluation of parameter vectors: fast, under one fixed protocol, with intervals."""

from importlib import import_module

# Imported on first use, so that a file of this package never loads its neighbours.
_MODULES = {
    "ParameterEvaluator": "evaluator",
    "aggregate_seeds": "summary",
    "build_groups": "groups",
    "evaluate_groups": "evaluate",
    "find_permutations": "permutations",
}

__all__ = ["ParameterEvaluator", "aggregate_seeds", "build_groups", "evaluate_groups", "find_permutations"]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
