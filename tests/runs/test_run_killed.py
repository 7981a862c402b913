"""A run that is killed at any moment goes on, to the same networks."""

import os
import random
import signal
import time

import pytest

from factories import tiny_recipe
from pdiff_hf.runs.folder import STAGES, Run
from pdiff_hf.runs.stages import run_recipe

# Checkpoints on the way of the training stages, so that there is something to go on from.
OFTEN = ("autoencoder.checkpointing_steps=2", "diffusion.checkpointing_steps=4")


def start(recipe, folder):
    if pid := os.fork():
        return pid
    code = 1
    try:
        run_recipe(recipe, folder)
        code = 0
    finally:
        os._exit(code)


def weights(folder):
    files = [path for path in folder.rglob("*.safetensors") if "checkpoint-" not in str(path)]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_ten_times_at_random_moments_is_the_run_that_was_left_alone(number, tmp_path):
    recipe, moments = tiny_recipe(*OFTEN), random.Random(int(number))
    begin = time.monotonic()
    assert os.waitpid(start(recipe, tmp_path / "alone"), 0)[1] == 0
    seconds = time.monotonic() - begin
    is_over, killed = False, 0
    while not is_over:
        pid, deadline = start(recipe, tmp_path / "killed"), time.monotonic() + moments.uniform(0, seconds / 3)
        while not is_over and (killed >= 10 or time.monotonic() < deadline):
            is_over = os.waitpid(pid, os.WNOHANG)[0] != 0
            time.sleep(0.01)
        if not is_over:
            os.kill(pid, number)
            # A training stage ends with a checkpoint, by an exit.
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (-number, 1)
            killed += 1
    assert all(Run(tmp_path / "killed").is_complete(stage) for stage in STAGES if stage != "fine_tune")
    assert weights(tmp_path / "killed") == weights(tmp_path / "alone")
    assert [path for path in (tmp_path / "killed").rglob(".*") if path.name != ".lock"] == []
