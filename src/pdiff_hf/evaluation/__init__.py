"""Evaluation of parameter vectors: fast, under one fixed protocol, with intervals."""

from .evaluate import EvaluationResult, GroupEvaluation, evaluate_groups
from .evaluator import EvaluatorOutput, ParameterEvaluator
from .groups import build_groups
from .report import make_table, write_report
from .similarity import nearest_distance, wrong_iou

__all__ = [
    "EvaluationResult",
    "EvaluatorOutput",
    "GroupEvaluation",
    "ParameterEvaluator",
    "build_groups",
    "evaluate_groups",
    "make_table",
    "nearest_distance",
    "write_report",
    "wrong_iou",
]
