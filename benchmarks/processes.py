"""Two processes against one on the same global batch: steps per second of both training stages, and their losses.

python benchmarks/processes.py
python benchmarks/processes.py --num_parameters 300288 --global_batch_size 256

One process has all cores, or one of them; two processes have one core each and exchange gradients over gloo.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM_UP = 10


def measure(arguments: argparse.Namespace) -> None:
    """Train in this process, or in those of `accelerate launch`, and write what the main one has measured."""
    import torch
    from diffusers import DDPMScheduler

    from pdiff_hf.models.autoencoder_pdiff import AutoencoderPDiff
    from pdiff_hf.models.kinds import AutoencoderPDiffConfig, UNet1DConditionConfig
    from pdiff_hf.training.loop import make_accelerator, run_steps

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 10, generator=generator) @ torch.randn(10, arguments.num_parameters, generator=generator)
    rows += 0.01 * torch.randn(rows.shape, generator=generator)
    latents = torch.randn(300, 32, 1, generator=generator)
    scheduler = DDPMScheduler(clip_sample=False)
    result = {}
    for stage in ("autoencoder", "diffusion"):
        config_type = {"autoencoder": AutoencoderPDiffConfig, "diffusion": UNet1DConditionConfig}[stage]
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        size = arguments.global_batch_size // processes
        config = config_type(steps=arguments.steps, train_batch_size=size, learning_rate=1e-5)
        accelerator = make_accelerator(config, arguments.measure)
        assert accelerator.num_processes == processes
        torch.manual_seed(0)
        if stage == "autoencoder":
            model = AutoencoderPDiff.from_preset("fast", num_parameters=arguments.num_parameters)
            model.fit_statistics(rows)
        else:
            model = config.build((32, 1))
        begins = []

        def draw(batch, stage=stage, begins=begins):
            begins.append(time.perf_counter())
            if stage == "autoencoder":
                return rows[batch.indices], batch.normal(arguments.num_parameters), batch.normal(32, 1)
            return latents[batch.indices], batch.normal(32, 1), batch.integers(1000)

        def loss_fn(model, clean, noise, other, stage=stage):
            if stage == "autoencoder":
                return model(clean, noise, other, return_dict=False)[2]
            timesteps = other
            predicted = model(scheduler.add_noise(clean, noise, timesteps), timesteps, return_dict=False)[0]
            return (predicted - noise).square().mean()

        folder = Path(arguments.measure) / f"{stage}-{processes}"
        folder.mkdir(exist_ok=True)
        _, history, _ = run_steps(accelerator, model, len(rows), draw, loss_fn, config, folder, stage)
        rate = (len(begins) - 1 - WARM_UP) / (begins[-1] - begins[WARM_UP])
        result[stage] = {"steps_per_second": rate, "losses": [entry["loss"] for entry in history]}
    if accelerator.is_main_process:
        (Path(arguments.measure) / "result.json").write_text(json.dumps(result), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_parameters", type=int, default=2048)
    parser.add_argument("--global_batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return

    from rich.console import Console
    from rich.table import Table

    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file"]
    launch.append(str(Path(__file__).parents[1] / "training" / "accelerate_configs" / "cpu_2_processes.yaml"))
    ways = {
        "1 process, all cores": ([sys.executable], str(os.cpu_count())),
        "1 process, 1 core": ([sys.executable], "1"),
        "2 processes, 1 core each": (launch, "1"),
    }
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, (command, threads) in ways.items():
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            command = [*command, __file__, *sys.argv[1:], "--measure", temporary]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            results[name] = json.loads((Path(temporary) / "result.json").read_text(encoding="utf-8"))
    title = f"D = {arguments.num_parameters}, global batch {arguments.global_batch_size}, {os.cpu_count()} cores"
    table = Table("", "stage", "steps/s", "ratio", "largest difference of losses", title=title)
    base = results["1 process, all cores"]
    for name, result in results.items():
        for stage, values in result.items():
            rate, expected = values["steps_per_second"], base[stage]
            difference = max(abs(a - b) for a, b in zip(values["losses"], expected["losses"], strict=True))
            table.add_row(
                name, stage, f"{rate:.1f}", f"{rate / expected['steps_per_second']:.2f}×", f"{difference:.1e}"
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
