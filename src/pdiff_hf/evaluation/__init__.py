"""Evaluation of parameter vectors: fast, under one fixed protocol, with intervals."""

from .evaluate import EvaluationResult, GroupEvaluation, evaluate_groups
from .evaluator import EvaluatorOutput, ParameterEvaluator
from .groups import build_groups
from .permutations import find_permutations
from .report import make_table, write_report, write_summary
from .seeds import aggregate_seeds
from .similarity import nearest_cosine, nearest_distance, wrong_iou
from .trajectory import trajectory

__all__ = [
    "EvaluationResult",
    "EvaluatorOutput",
    "GroupEvaluation",
    "ParameterEvaluator",
    "aggregate_seeds",
    "build_groups",
    "evaluate_groups",
    "find_permutations",
    "make_table",
    "nearest_cosine",
    "nearest_distance",
    "trajectory",
    "write_report",
    "write_summary",
    "wrong_iou",
]
