"""Train the denoiser on the latents of a parameter dataset and save the pipeline.

One process:
    python training/train_diffusion.py --dataset_dir runs/demo/dataset --autoencoder_dir runs/mine/autoencoder \
        --output_dir runs/mine/pipeline

All GPUs of a machine (further ways: training/README.md):
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml --num_processes 4 \
        training/train_diffusion.py --dataset_dir … --autoencoder_dir … --output_dir …

Go on after an interruption:
    … --resume_from_checkpoint latest

To the Hub when it is done, with the login of `hf auth login`:
    … --push_to_hub --hub_model_id user/name
"""

import argparse
import sys

from pdiff_hf.terminal import lasting_streams
from pdiff_hf.wording import typed_options


def make_parser() -> argparse.ArgumentParser:
    from pdiff_hf.models.auto import DENOISER
    from pdiff_hf.runs.validation import add_config_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="the parameter dataset the autoencoder was trained on")
    parser.add_argument("--autoencoder_dir", required=True, help="output of train_autoencoder.py")
    parser.add_argument("--output_dir", required=True, help="receives the pipeline and the checkpoints")
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or 'latest'")
    parser.add_argument("--push_to_hub", action="store_true", help="push the pipeline when it is trained")
    parser.add_argument("--hub_model_id", metavar="USER/NAME", help="where to; made when it does not exist")
    parser.add_argument("--hub_private_repo", action="store_true", help="a new repository is private")
    add_config_arguments(parser, DENOISER)
    return parser


@lasting_streams()
def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()

    from huggingface_hub import get_token

    from pdiff_hf.models.auto import DENOISER
    from pdiff_hf.pipelines.card import write_pipeline_card
    from pdiff_hf.pipelines.push import push_pipeline
    from pdiff_hf.runs.validation import config_values, option_names, parse_section
    from pdiff_hf.training.diffusion import train_diffusion
    from pdiff_hf.training.loop import make_accelerator

    try:
        with typed_options(option_names(parser)):
            if arguments.push_to_hub and (arguments.hub_model_id is None or get_token() is None):
                raise ValueError("--push_to_hub needs --hub_model_id user/name, and a login: hf auth login.")
            config = parse_section(DENOISER, config_values(arguments, DENOISER))
            accelerator = make_accelerator(config, arguments.output_dir)
            train_diffusion(
                arguments.dataset_dir,
                arguments.autoencoder_dir,
                arguments.output_dir,
                config,
                arguments.resume_from_checkpoint,
                accelerator,
            )
            pushed = ""
            if accelerator.is_main_process:
                write_pipeline_card(arguments.output_dir)
                if arguments.push_to_hub:
                    url = push_pipeline(
                        arguments.output_dir, arguments.hub_model_id, private=arguments.hub_private_repo
                    )
                    pushed = f" → {url}"
            accelerator.wait_for_everyone()
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    accelerator.print(f"pipeline → {arguments.output_dir}{pushed}")
    # One that leaves while another still talks to it ends in std::terminate.
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()


if __name__ == "__main__":
    main()
