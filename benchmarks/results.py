"""The page of all results, `docs/results.md`: what was run, beside the paper's numbers, and what was not.

    python benchmarks/results.py runs/* --out docs/results.md

The arguments are folders of finished runs, or of their seeds; of several, those that are none are named and left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pdiff_hf.files import atomic_write
from results_page.page import make_page
from results_page.runs import collect_results, find_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args()
    try:
        runs, left_out = find_runs(args.runs)
        found = collect_results(runs)
    except ValueError as error:
        parser.error(str(error))
    with atomic_write(args.out) as temporary:
        temporary.write_text(make_page(found), encoding="utf-8")
    for problem in left_out:
        print(f"Left out: {problem}")
    print(f"{len(found)} results → {args.out}")


if __name__ == "__main__":
    main()
