"""Texts that are the same everywhere, and the results that they are made of."""

import json
import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
# As files of 0.1 have it: without what groups are to each other.
METRICS = json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))


def check_golden(name, text):
    """Compare with a file in `tests/golden`; `PDIFF_WRITE_GOLDEN=1` writes it anew, to be read before a commit."""
    file = GOLDEN / name
    if os.environ.get("PDIFF_WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
