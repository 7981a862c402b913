import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from factories import make_dataset
from pdiff_hf.models.kinds import AutoencoderPDiffConfig
from pdiff_hf.training import checkpoints as training_checkpoints
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.logs import NonFiniteLossError
from pdiff_hf.training.loop import make_accelerator, run_steps
from small_training import CONFIG, ROWS, names, train


def test_the_newest_checkpoints_are_kept(tmp_path):
    train(tmp_path / "run", checkpoints_total_limit=2)
    assert names(tmp_path / "run") == ["checkpoint-6", "checkpoint-8"]


@pytest.mark.parametrize("what", ["weights", "optimizer", "state", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys, what):
    expected, history = train(tmp_path / "run", checkpoints_total_limit=2)
    newest = tmp_path / "run" / "checkpoint-8"
    if what == "missing":
        (newest / "optimizer.bin").unlink()
    else:
        names = {"weights": "model.safetensors", "optimizer": "optimizer.bin", "state": "trainer_state.json"}
        path = newest / names[what]
        path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    weights, again = train(tmp_path / "run", "latest", checkpoints_total_limit=2)
    said = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    assert len(said) == 1 and "checkpoint-8 is damaged (" in said[0] and "passed over" in said[0]
    assert torch.equal(weights["weight"], expected["weight"]) and again == history


@pytest.mark.slow
def test_a_compiled_network_is_saved_as_it_was_built(tmp_path, monkeypatch):
    expected, history = train(tmp_path / "plain")
    # What `accelerate launch --dynamo_backend` sets; the backend that needs no compiler.
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    for resume in (None, str(tmp_path / "compiled" / "checkpoint-4")):
        weights, again = train(tmp_path / "compiled", resume, checkpoints_total_limit=9)
        assert list(weights) == ["weight", "bias"]
        assert torch.equal(weights["weight"], expected["weight"]) and again == history


def test_bits_that_turned_are_found(tmp_path):
    train(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint-8" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint-8 is damaged: model.safetensors is not what was written"):
        train(tmp_path / "run", str(tmp_path / "run" / "checkpoint-8"))


def test_without_a_complete_checkpoint_training_starts_anew(tmp_path):
    expected, _ = train(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-8" / "trainer_state.json").unlink()
    assert torch.equal(train(tmp_path / "run", "latest")[0]["weight"], expected["weight"])


def test_checkpoint_of_another_model_is_one_line(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(ValueError, match="does not fit this configuration") as caught:
        train(tmp_path / "run", "latest", use_ema=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_its_step_before_it_is_saved(tmp_path, bad):
    message = r"test: the loss is (nan|inf) at step 4; the last good checkpoint is .*checkpoint-2\. Lower"
    with pytest.raises(NonFiniteLossError, match=message):
        train(tmp_path / "run", loss=lambda call: bad if call == 3 else 1.0)
    assert names(tmp_path / "run") == ["checkpoint-2"]
    weights, _ = train(tmp_path / "run", "latest")
    assert weights["weight"].isfinite().all()


def test_an_infinite_gradient_of_a_finite_loss_stops_too(tmp_path):
    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    config = AutoencoderPDiffConfig(**CONFIG)

    def draw(batch):
        return ROWS[batch.indices], torch.tensor(batch.step)

    def loss_fn(model, rows, step):
        value = model(rows).square().mean()
        return Explodes.apply(value) if step == 4 else value

    accelerator, model = make_accelerator(config, tmp_path), torch.nn.Linear(6, 6)
    with pytest.raises(NonFiniteLossError, match=r"norm of the gradient is (nan|inf) at step 5"):
        run_steps(accelerator, model, len(ROWS), draw, loss_fn, config, tmp_path, "test")
    assert names(tmp_path) == ["checkpoint-4"]


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    expected, _ = train(tmp_path / "straight")
    save_state = training_checkpoints.Accelerator.save_state

    def full(self, folder, *args, **kwargs):
        if folder.endswith("checkpoint-6"):
            Path(folder).mkdir()
            Path(folder, "model.safetensors").write_bytes(b"begun")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_state(self, folder, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training_checkpoints.Accelerator, "save_state", full)
        message = r"checkpoint-6 could not be written: .*No space left.*last checkpoint: checkpoint-4"
        with pytest.raises(ValueError, match=message) as caught:
            train(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-4"]
    assert torch.equal(train(tmp_path / "run", "latest")[0]["weight"], expected["weight"])


FULL = """
import resource, signal, sys
from pdiff_hf.models.kinds import AutoencoderPDiffConfig
from pdiff_hf.training.autoencoder import train_autoencoder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
config = AutoencoderPDiffConfig(**eval(sys.argv[4]))
try:
    train_autoencoder(sys.argv[1], sys.argv[2], config, resume_from_checkpoint="latest")
except ValueError as error:
    sys.exit(f"Error: {error}")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes")
def test_files_that_cannot_be_written_leave_what_was_there(tmp_path):
    """The kernel refuses to write more than so many bytes to a file: to checkpoints, then to the trained weights."""
    dataset, output = make_dataset(tmp_path), tmp_path / "autoencoder"
    config = {
        "steps": 6,
        "train_batch_size": 8,
        "latent_channels": 4,
        "latent_length": 2,
        "lr_warmup_steps": 0,
        "min_explained_variance": -1e9,
        "checkpointing_steps": 2,
    }
    train_autoencoder(dataset, output, AutoencoderPDiffConfig(**config))
    kept = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    def fails(limit, **options):
        command = [sys.executable, "-c", FULL, dataset, output, limit, {**config, **options}]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        return result.stderr.strip().splitlines()[-1]

    half = (output / "diffusion_pytorch_model.safetensors").stat().st_size // 2
    assert "checkpoint-6 could not be written" in fails(half, steps=8)
    assert "the autoencoder in" in fails(half, steps=5, checkpointing_steps=100)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == kept
