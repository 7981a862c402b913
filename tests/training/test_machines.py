"""Several machines and several cards: the first as two launches on this one, the second where there are two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from factories import make_dataset
from processes import launch_two, run

TRAINING = Path(__file__).parents[2] / "training"
OPTIONS = (
    "--max_train_steps 6 --checkpointing_steps 4 --lr_warmup_steps 0 --latent_channels 4 --latent_length 2".split()
)
OPTIONS += ["--min_explained_variance=-100"]


def script(dataset, output, *more):
    return [TRAINING / "train_autoencoder.py", "--dataset_dir", dataset, "--output_dir", output, *OPTIONS, *more]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_machines_train_together(tmp_path):
    """The config of two machines, with one process on each, over gloo."""
    accelerate = Path(sys.executable).with_name("accelerate")
    start = [accelerate, "launch", "--config_file", TRAINING / "accelerate_configs" / "multi_node.yaml"]
    start += "--num_processes 2 --main_process_ip 127.0.0.1 --main_process_port 29517".split()
    dataset, machines = make_dataset(tmp_path), []
    for rank in (0, 1):
        command = [*start, "--machine_rank", rank, *script(dataset, tmp_path / "ae")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        machines.append(subprocess.Popen([str(part) for part in command], env=environment, **pipes))
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    state = json.loads((tmp_path / "ae" / "checkpoint-4" / "trainer_state.json").read_text())
    # Rows dealt in 4 steps of 64 on each of the two.
    assert state["rows"] == 512


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(torch.accelerator.device_count() < 2, reason="there are not two accelerators")
def test_two_cards_train_what_one_trains(tmp_path):
    """Over NCCL, with the synchronised BatchNorm of the preset `paper`."""
    dataset, logs = make_dataset(tmp_path), []
    options = ["--preset", "paper", "--learning_rate", "1e-5", "--train_batch_size"]
    code, out = run(sys.executable, *script(dataset, tmp_path / "one", *options, 8))
    assert code == 0, out
    code, out = launch_two(*script(dataset, tmp_path / "two", *options, 4), on_cpu=False)
    assert code == 0, out
    for name in ("one", "two"):
        lines = (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["loss"] for line in lines])
    assert logs[1] == pytest.approx(logs[0], abs=1e-4)
