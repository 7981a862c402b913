"""Train a base model and collect its checkpoints into a parameter dataset.

A whole small network on the embedded digits, in seconds:

    python training/collect.py --recipe digits-mlp --output_dir runs/digits/dataset

The last two normalisation layers of a ResNet-18 on images of your own, a folder or a Hub id:

    python training/collect.py --recipe resnet18-last-norms --set task.dataset=PATH_OR_HUB_ID \
        --output_dir runs/resnet18/dataset

Three runs from the same base model, 100 checkpoints each, another seed:

    python training/collect.py --recipe digits-mlp --seed 1 --set collect.runs=3 --set collect.num_checkpoints=100 \
        --output_dir runs/digits-3/dataset

Many independent networks, shared by the processes of a machine; the rows are those of one process:

    accelerate launch --multi_gpu --num_processes 2 training/collect.py --recipe digits-mlp-seeds \
        --output_dir runs/seeds/dataset

Stopped and started again, it keeps the trained base model and all complete runs.
"""

import argparse
import sys


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(__doc__.splitlines()[2:]),
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--recipe", required=True, help="name of a shipped recipe, or a YAML file")
    parser.add_argument("--output_dir", required=True, help="folder of the parameter dataset, new or empty")
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of initialisation and data order; the recipe's by default"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a key of the recipe; may be repeated",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from pathlib import Path

    from pdiff_hf.machine import process_state
    from pdiff_hf.runs.recipe import load_recipe
    from pdiff_hf.runs.stages import collect

    result = collect(load_recipe(args.recipe, args.set, args.seed), Path(args.output_dir))
    if process_state().is_main_process:
        print(
            f"{result['num_checkpoints']} checkpoints of {result['num_parameters']} parameters, mean test accuracy "
            f"{100 * result['test_accuracy']:.2f} %: {args.output_dir}"
        )


if __name__ == "__main__":
    try:
        main(make_parser().parse_args())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
