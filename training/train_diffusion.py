"""Train the denoiser on the latents of a parameter dataset and save the pipeline.

One process:
    python training/train_diffusion.py --dataset_dir runs/demo/dataset --autoencoder_dir runs/mine/autoencoder \
        --output_dir runs/mine/pipeline

All GPUs of a machine:
    accelerate launch --multi_gpu training/train_diffusion.py --dataset_dir … --autoencoder_dir … --output_dir …

Go on after an interruption:
    … --resume_from_checkpoint latest
"""

import argparse
import sys


def make_parser() -> argparse.ArgumentParser:
    from pdiff_hf.training.arguments import add_config_arguments
    from pdiff_hf.training.config import DiffusionConfig

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="the parameter dataset the autoencoder was trained on")
    parser.add_argument("--autoencoder_dir", required=True, help="output of train_autoencoder.py")
    parser.add_argument("--output_dir", required=True, help="receives the pipeline and the checkpoints")
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or 'latest'")
    add_config_arguments(parser, DiffusionConfig)
    return parser


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()

    from pdiff_hf.recipe import parse_config
    from pdiff_hf.training import DiffusionConfig, train_diffusion
    from pdiff_hf.training.arguments import config_values
    from pdiff_hf.training.loop import make_accelerator

    try:
        config = parse_config(DiffusionConfig, config_values(arguments, DiffusionConfig))
        accelerator = make_accelerator(config, arguments.output_dir)
        train_diffusion(
            arguments.dataset_dir,
            arguments.autoencoder_dir,
            arguments.output_dir,
            config,
            arguments.resume_from_checkpoint,
            accelerator,
        )
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    accelerator.print(f"pipeline → {arguments.output_dir}")


if __name__ == "__main__":
    main()
