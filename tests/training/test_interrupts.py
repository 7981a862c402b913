import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from factories import make_dataset
from pdiff_hf.training.interrupts import TrainingInterrupted
from small_training import names, train

SCRIPT = """
import sys
from pdiff_hf.models.kinds import AutoencoderPDiffConfig
from pdiff_hf.training.autoencoder import train_autoencoder

config = AutoencoderPDiffConfig(steps=100_000, train_batch_size=8, latent_channels=4, latent_length=2,
                                lr_warmup_steps=0, checkpointing_steps=100_000)
train_autoencoder(sys.argv[1], sys.argv[2], config)
"""


@pytest.fixture(autouse=True)
def _python_handles_control_c():
    """Shells start background jobs with SIGINT ignored, and so Python leaves it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 3), (signal.SIGINT, 3), (signal.SIGTERM, 10)])
def test_a_signal_writes_a_checkpoint_and_the_resumed_run_is_an_uninterrupted_one(tmp_path, capsys, number, step):
    expected, history = train(tmp_path / "straight", steps=12, checkpointing_steps=100)
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted) as caught:
        train(
            tmp_path / "run",
            loss=lambda call: 1.0 if call != step - 1 else os.kill(os.getpid(), number) or 1.0,
            steps=12,
            checkpointing_steps=100,
        )
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped by" in line]
    assert len(said) == 1
    assert re.search(
        rf"test: stopped by {number.name} after {step} of 12 steps .* --resume_from_checkpoint latest", said[0]
    )
    assert names(tmp_path / "run") == [f"checkpoint-{step}"]
    weights, again = train(tmp_path / "run", "latest", steps=12, checkpointing_steps=100)
    assert torch.equal(weights["weight"], expected["weight"]) and again == history


def test_a_second_control_c_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("pdiff_hf.training.interrupts.SECONDS_OF_COPIES", 0.0)

    def twice(call):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", loss=twice)
    assert names(tmp_path / "run") == []


def test_a_signal_of_the_last_step_is_not_lost(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", loss=lambda call: os.kill(os.getpid(), signal.SIGINT) or 1.0, steps=1)


@pytest.mark.slow
def test_sigterm_ends_a_program_with_its_code_and_one_line(tmp_path):
    output = tmp_path / "autoencoder"
    arguments = [sys.executable, "-c", SCRIPT, make_dataset(tmp_path), output]
    process = subprocess.Popen([str(a) for a in arguments], stderr=subprocess.PIPE, text=True)
    seen = ""
    while "autoencoder:" not in seen or "it/s" not in seen:
        seen += process.stderr.read(1)
        assert process.poll() is None, seen
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in rest and "Traceback" not in rest
    assert len(names(output)) == 1
