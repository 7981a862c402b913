"""Steps as CUDA graphs: everything but the recording itself, which needs CUDA, is tested without it."""

import warnings
from typing import ClassVar

import pytest
import torch

from factories import LATENTS, make_dataset
from functional_zoo import FUNCTIONAL, make_zoo
from pdiff_hf import graphs
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.graphs import GraphedUpdate, StaticStep
from pdiff_hf.models.auto import AUTOENCODER, DENOISER
from pdiff_hf.models.kinds import AutoencoderFunctionalConfig
from pdiff_hf.tasks.evaluators import make_gate_evaluator
from pdiff_hf.tasks.probes import make_probes
from pdiff_hf.training import optimization
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.denoiser import train_denoiser
from pdiff_hf.training.loop import make_accelerator, run_steps

# A learning rate that float32 has, too.
EXACT = {"lr_scheduler": "constant", "lr_warmup_steps": 0, "learning_rate": 2.0**-9}
OPEN = {"allow_poor_reconstruction": True}


class Static(optimization.Optimization):
    """From the second step on, does steps as a graph replays them."""

    counts = None
    # What was waited for and copied before each of them, and after.
    steps: ClassVar[list] = []

    def __init__(self, *args):
        super().__init__(*args)
        self._step = None

    def _advance(self, *inputs):
        if self._step is None:
            self._step = StaticStep(self.update, self.optimizer.optimizer, inputs)
            return self.update(*inputs)
        self._step.load(inputs)
        before = self.totals()
        outputs = self._step.run()
        self.steps.append((before, self.totals()))
        return outputs

    def totals(self):
        counts = self.counts
        return counts and [counter.total() for counter in (counts.waits, counts.to_device, counts.to_host)]


@pytest.fixture
def static_steps(monkeypatch, request):
    """Trainings do their steps as a graph replays them: `(before, after)` of each."""
    monkeypatch.setattr(Static, "steps", [])
    if "pretended" in request.fixturenames:
        monkeypatch.setattr(Static, "counts", request.getfixturevalue("pretended"))
    monkeypatch.setattr("pdiff_hf.training.loop.Optimization", Static)
    return Static.steps


def train(folder, conditional=False, **options):
    folder.mkdir(exist_ok=True)
    config = DENOISER.validate({"steps": 6, "validate": "none", **EXACT, **options})
    accelerator = make_accelerator(config, folder)
    latents = torch.randn(60, 8, 2, generator=torch.Generator().manual_seed(0)).to(accelerator.device)
    given = {}
    if conditional:
        labels = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).repeat(3, 1)
        given = {"conditions": labels.to(accelerator.device)}
    denoiser, _, _, history = train_denoiser(accelerator, latents, {"run": range(60)}, config, folder, **given)
    return denoiser.state_dict(), history


@pytest.mark.parametrize(
    "options", [{}, {"conditional": True}, {"kind": "unet_1d", "snr_gamma": 5.0, "use_ema": False}]
)
def test_a_static_step_is_a_step_to_the_bit(tmp_path, options, request):
    expected = train(tmp_path / "plain", **options)
    steps = request.getfixturevalue("static_steps")
    found = train(tmp_path / "static", **options)
    assert len(steps) == 5 and found[1] == expected[1]
    assert [name for name, value in expected[0].items() if not torch.equal(found[0][name], value)] == []


def test_a_static_step_follows_the_schedule_of_the_learning_rate(tmp_path, request):
    options = {"lr_scheduler": "cosine", "lr_warmup_steps": 3, "learning_rate": 1e-2}
    expected, _ = train(tmp_path / "plain", **options)
    request.getfixturevalue("static_steps")
    found, _ = train(tmp_path / "static", **options)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_options_of_the_optimiser_are_its_own_after_a_static_step():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def update(inputs):
        model(inputs).sum().backward()
        optimizer.step()
        return optimizer.param_groups[0]["lr"].clone(), torch.zeros(())

    step = StaticStep(update, optimizer, [torch.zeros(2, 3)])
    step.load([torch.ones(2, 3)])
    assert step.run()[0].item() == pytest.approx(1e-3)
    group = optimizer.state_dict()["param_groups"][0]
    assert (group["lr"], group["capturable"]) == (1e-3, False)


def assert_recordable(steps):
    """Nothing waits, and nothing goes from the host to the device or back: so CUDA can record it."""
    assert steps and all(before is not None and before == after for before, after in steps)


@pytest.mark.parametrize("options", [{}, {"conditional": True}, {"kind": "unet_1d", "snr_gamma": 5.0}])
def test_steps_of_denoisers_can_be_recorded(static_steps, pretended, tmp_path, options):
    train(tmp_path, **options)
    assert_recordable(static_steps)


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_steps_of_autoencoders_can_be_recorded(static_steps, pretended, tmp_path, preset):
    options = {"steps": 4, "train_batch_size": 8, "preset": preset, **EXACT, **LATENTS, **OPEN}
    train_autoencoder(make_dataset(tmp_path), tmp_path / "autoencoder", AUTOENCODER.validate(options))
    assert_recordable(static_steps)


@pytest.mark.parametrize("targets", ["seen", "combinations"])
def test_steps_of_functional_autoencoders_can_be_recorded(static_steps, pretended, tmp_path, targets):
    losses = {"function_loss": 1.0, "task_loss": 1.0, "weight_loss": 1.0}
    # New inputs at every other step, for the same graph.
    options = {**FUNCTIONAL, "steps": 5, "pool_steps": 2, "targets": targets, **losses, **EXACT, **OPEN}
    dataset, config = ParameterDataset(make_zoo(tmp_path)), AutoencoderFunctionalConfig(**options)
    evaluator, probes = make_gate_evaluator(dataset), make_probes(dataset, config)
    train_autoencoder(dataset, tmp_path / "autoencoder", config, evaluator, probes=probes)
    assert_recordable(static_steps)


# On CUDA


@pytest.fixture
def recorded(monkeypatch):
    """Graphs that trainings have recorded."""
    if not torch.cuda.is_available():
        pytest.skip("CUDA graphs need CUDA")
    made, record = [], GraphedUpdate._record

    def recording(self, inputs):
        record(self, inputs)
        made.append(self._graph)

    monkeypatch.setattr(GraphedUpdate, "_record", recording)
    return made


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"kind": "unet_1d", "snr_gamma": 5.0}])
def test_replayed_steps_are_those_that_are_launched(recorded, tmp_path, monkeypatch, options):
    options = {"steps": 20, "lr_scheduler": "cosine", **options}
    found, history = train(tmp_path / "graph", **options)
    assert len(recorded) == 1 and recorded[0] is not None
    monkeypatch.setattr(graphs, "WARM_UP_STEPS", 100)
    expected, launched = train(tmp_path / "launched", **options)
    assert len(recorded) == 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    assert [entry["loss"] for entry in history] == pytest.approx([entry["loss"] for entry in launched], rel=1e-4)


@pytest.mark.gpu
def test_nothing_waits_between_two_logs(recorded, tmp_path, monkeypatch):
    step = optimization.Optimization.step

    def strict(self, batches):
        # Recording synchronises, once.
        is_open = self.lr_scheduler.last_epoch > graphs.WARM_UP_STEPS
        torch.cuda.set_sync_debug_mode("error" if is_open else "default")
        try:
            return step(self, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(optimization.Optimization, "step", strict)
    train(tmp_path, steps=20)
    assert recorded[0] is not None


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded_is_launched_with_one_warning(recorded, tmp_path):
    config = AUTOENCODER.validate({"steps": 8, "train_batch_size": 4, **EXACT})
    rows = torch.randn(20, 6, device="cuda")

    def loss_fn(model, indices):
        loss = (model(rows[indices]) - rows[indices]).square().mean()
        return loss * (1 if loss.item() > 0 else 2)

    accelerator, model = make_accelerator(config, tmp_path), torch.nn.Linear(6, 6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained = run_steps(accelerator, model, 20, lambda batch: [batch.indices], loss_fn, config, tmp_path, "test")
    assert recorded == [] and len([w for w in caught if "CUDA graph" in str(w.message)]) == 1
    assert len(trained.history) == 1
