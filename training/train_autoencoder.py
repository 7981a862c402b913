"""Train the autoencoder on a parameter dataset.

One process:
    python training/train_autoencoder.py --dataset_dir runs/demo/dataset --output_dir runs/mine/autoencoder

All GPUs of a machine (further ways: training/README.md):
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml --num_processes 4 \
        training/train_autoencoder.py --dataset_dir … --output_dir …

Two processes on a CPU (Accelerate's own `--cpu --num_processes 2` silently starts one):
    accelerate launch --config_file training/accelerate_configs/cpu_2_processes.yaml training/train_autoencoder.py …

Go on after an interruption:
    … --resume_from_checkpoint latest
"""

import argparse
import sys

from pdiff_hf.terminal import lasting_streams
from pdiff_hf.wording import typed_options


def make_parser() -> argparse.ArgumentParser:
    from pdiff_hf.models.auto import AUTOENCODER
    from pdiff_hf.runs.validation import add_config_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="a parameter dataset")
    parser.add_argument("--output_dir", required=True, help="receives the autoencoder, its checkpoints and the gate")
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or 'latest'")
    add_config_arguments(parser, AUTOENCODER)
    return parser


@lasting_streams()
def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()

    from pdiff_hf.data.dataset import ParameterDataset
    from pdiff_hf.models.auto import AUTOENCODER
    from pdiff_hf.results.text import reconstruction
    from pdiff_hf.runs.validation import config_values, option_names, parse_section
    from pdiff_hf.tasks.evaluators import make_gate_evaluator
    from pdiff_hf.tasks.probes import make_probes
    from pdiff_hf.training.autoencoder import train_autoencoder
    from pdiff_hf.training.loop import make_accelerator

    try:
        with typed_options(option_names(parser)):
            config = parse_section(AUTOENCODER, config_values(arguments, AUTOENCODER))
            accelerator = make_accelerator(config.optimization, arguments.output_dir)
            dataset = ParameterDataset(arguments.dataset_dir)
            _, report = train_autoencoder(
                dataset,
                arguments.output_dir,
                config,
                make_gate_evaluator(dataset),
                arguments.resume_from_checkpoint,
                accelerator,
                make_probes(dataset, config),
            )
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    accelerator.print(f"{reconstruction(report)} → {arguments.output_dir}")
    # One that leaves while another still talks to it ends in std::terminate.
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()


if __name__ == "__main__":
    main()
