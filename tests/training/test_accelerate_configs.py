import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from factories import make_dataset

CONFIGS = Path(__file__).parents[2] / "training" / "accelerate_configs"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


def environment(name, *arguments):
    """What `accelerate launch` sets for the processes it starts."""
    parser = launch_command_parser()
    parsed = parser.parse_args(["--config_file", str(CONFIGS / name), *arguments, "script.py"])
    return prepare_multi_gpu_env(_validate_launch_command(parsed)[0])


def test_there_are_configs_from_one_gpu_to_several_machines():
    assert NAMES == ["cpu_2_processes.yaml", "fsdp.yaml", "multi_gpu.yaml", "multi_node.yaml", "single_gpu.yaml"]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_loads_every_config(name):
    config = load_config_from_file(str(CONFIGS / name))
    assert config.num_processes >= config.num_machines


def test_fsdp_config_asks_for_what_the_training_loop_needs(monkeypatch):
    found = environment("fsdp.yaml")
    assert found["ACCELERATE_USE_FSDP"] == "true" and found["FSDP_VERSION"] == "2"
    assert found["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"
    from accelerate import FullyShardedDataParallelPlugin

    for key, value in found.items():
        if key.startswith("FSDP"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.auto_wrap_policy is None


@pytest.mark.slow
@pytest.mark.multiprocess
def test_cpu_config_starts_two_processes_that_train(tmp_path):
    """The command of training/README.md, without a variable in the environment."""
    accelerate = Path(sys.executable).with_name("accelerate")
    command = [accelerate, "launch", "--config_file", CONFIGS / "cpu_2_processes.yaml"]
    command += [CONFIGS.parent / "train_autoencoder.py", "--dataset_dir", make_dataset(tmp_path)]
    command += ["--output_dir", tmp_path / "ae", "--max_train_steps", 6, "--checkpointing_steps", 4]
    command += "--latent_channels 4 --latent_length 2 --min_explained_variance=-100 --lr_warmup_steps 0".split()
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("of the variance of held-out checkpoints") == 1
    states = {path.name for path in (tmp_path / "ae" / "checkpoint-4").glob("random_states_*")}
    assert states == {"random_states_0.pkl", "random_states_1.pkl"}
    # Rows dealt in 4 steps of 64 on each of 2 processes.
    assert json.loads((tmp_path / "ae" / "checkpoint-4" / "trainer_state.json").read_text())["rows"] == 512
