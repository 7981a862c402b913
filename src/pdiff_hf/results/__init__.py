"""The page of all results: what was run, beside the paper's numbers, and what was not run."""

from .page import make_page
from .runs import collect_results

__all__ = ["collect_results", "make_page"]
