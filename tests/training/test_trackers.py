import importlib.util
import json
import sys

import pytest

from pdiff_hf.training import logs as trackers
from small_training import train

installed = {name: importlib.util.find_spec(name) is not None for name in ("tensorboard", "wandb", "trackio")}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_missing_package_is_one_line_that_names_the_extra(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(ValueError, match=rf'pip install "pdiff-hf\[{name}\]"') as caught:
        train(tmp_path / "run", report_to=name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not installed["tensorboard"], reason="tensorboard is not installed")
def test_tensorboard_gets_the_losses_of_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = train(tmp_path / "run", report_to="tensorboard", steps=20)
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "pdiff")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == pytest.approx({entry["step"]: entry["loss"] for entry in history})


@pytest.mark.slow
@pytest.mark.skipif(not installed["wandb"], reason="wandb is not installed")
def test_wandb_writes_its_files_beside_the_checkpoints_when_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path / "run", report_to="wandb")
    assert list((tmp_path / "run" / "logs").rglob("*.wandb"))


@pytest.mark.slow
@pytest.mark.skipif(not installed["trackio"], reason="trackio is not installed")
def test_trackio_gets_the_losses_of_the_log(tmp_path):
    """In a process of its own: the folder of its database is read when it is imported."""
    from processes import run

    code = (
        "import json, pathlib, sys, trackio; from small_training import train;"
        "folder = pathlib.Path(sys.argv[1]); print(json.dumps(train(folder, report_to='trackio')[1]))"
    )
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": ":".join(sys.path)}
    code, out = run(sys.executable, "-c", code, tmp_path / "run", **environment)
    assert code == 0, out
    assert [path for path in (tmp_path / "trackio").rglob("*.db") if b"loss" in path.read_bytes()], out


@pytest.mark.skipif(not installed["tensorboard"], reason="tensorboard is not installed")
def test_a_tracker_is_finished_when_training_fails(tmp_path):
    from pdiff_hf.training.logs import NonFiniteLossError

    with pytest.raises(NonFiniteLossError):
        train(
            tmp_path / "run", report_to="tensorboard", steps=20, loss=lambda call: 1.0 if call < 15 else float("nan")
        )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "logs" / "pdiff")).Reload()
    assert events.Scalars("loss")[-1].step >= 10


def test_stages_of_one_program_may_differ_in_precision(tmp_path):
    for precision in ("bf16", "no"):
        _, history = train(tmp_path / precision, mixed_precision=precision)
        assert json.dumps(history)
