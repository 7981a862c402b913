import json

import pytest
import torch
from safetensors.torch import load_file

from functional_zoo import FUNCTIONAL, make_images, make_layout, make_network, make_vectors, make_zoo
from pdiff_hf import AutoencoderFunctional
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.models.functions import analogies
from pdiff_hf.models.kinds import AutoencoderFunctionalConfig
from pdiff_hf.tasks.auto import load_task
from pdiff_hf.tasks.config import ImageClassificationConfig
from pdiff_hf.tasks.evaluators import make_gate_evaluator
from pdiff_hf.tasks.probes import ProbeSource, make_probes
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.batches import GlobalBatch
from pdiff_hf.training.functional import FunctionObjective
from pdiff_hf.training.functional_gate import check_functions, disagreements, match_diversity, measure_functions
from pdiff_hf.training.gate import PoorReconstructionError
from pdiff_hf.training.logs import NonFiniteLossError
from pdiff_hf.training.targets import choose_neighbours, nearest, normal_weights


def config_of(**options):
    return AutoencoderFunctionalConfig(**{**FUNCTIONAL, **options})


def train(dataset, folder, resume=None, **options):
    dataset, config = ParameterDataset(dataset), config_of(**options)
    evaluator, probes = make_gate_evaluator(dataset), make_probes(dataset, config)
    return train_autoencoder(dataset, folder, config, evaluator, resume, probes=probes)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def make_objective(class_labels=None, **options):
    config, layout, vectors, model = config_of(**options), make_layout(), make_vectors(), make_network(0)
    torch.manual_seed(0)
    autoencoder = config.build(layout.to_dict())
    of_tasks = class_labels is not None or config.targets == "analogies"
    functions = autoencoder.fit(vectors, make_images(), model, probabilities=of_tasks)
    probes = ProbeSource(load_task(ImageClassificationConfig()))
    return autoencoder, FunctionObjective(autoencoder, functions, vectors, model, probes, config, class_labels)


def loss_of(objective, model, batch):
    return objective.loss(model, *objective.draw(batch))


class Written(torch.nn.Module):
    """Writes the same networks whatever the latents are."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = torch.nn.Parameter(vectors)
        self.seen = []

    def forward(self, latents):
        self.seen.append(latents)
        return self.vectors[: len(latents)]


def test_a_network_that_is_the_target_has_the_least_function_loss():
    autoencoder, objective = make_objective(targets="seen", latent_noise=0.0)
    batch = GlobalBatch(20, 8, 0, 0)
    own = autoencoder.normalizer.normalize(make_vectors()[batch.indices])
    least = loss_of(objective, Written(own), batch)
    assert loss_of(objective, Written(own.roll(1, 0)), GlobalBatch(20, 8, 0, 0)) > least + 0.5
    assert loss_of(objective, Written(own + 0.01 * torch.randn(own.shape)), GlobalBatch(20, 8, 0, 0)) > least


def test_latents_of_targets_are_those_of_the_networks():
    autoencoder, objective = make_objective(targets="seen", latent_noise=0.0)
    batch = GlobalBatch(20, 8, 0, 0)
    written = Written(autoencoder.normalizer.normalize(make_vectors()[batch.indices]))
    loss_of(objective, written, batch)
    expected = autoencoder.encode(make_vectors()[batch.indices]).latents.flatten(1)
    assert torch.allclose(written.seen[0], expected, atol=1e-4)


def test_combinations_have_mean_and_covariance_of_the_networks():
    _, objective = make_objective(targets="combinations")
    (weights,) = objective.targets.draw(GlobalBatch(20, 4000, 0, 0))
    assert torch.allclose(weights.sum(1), torch.ones(4000), atol=1e-4)
    latents = objective.targets.latents(weights)
    assert latents.mean(0).abs().max() < 0.1
    assert torch.allclose(torch.cov(latents.T), torch.eye(6), atol=0.1)


@pytest.mark.parametrize("targets", ["auto", "analogies"])
def test_a_step_sees_the_same_however_many_processes_share_it(targets):
    autoencoder, objective = make_objective(targets=targets, task_loss=1.0, weight_loss=1.0)
    whole = loss_of(objective, autoencoder, GlobalBatch(20, 8, 3, 0))
    parts = [loss_of(objective, autoencoder, GlobalBatch(20, 4, 3, 0, rank=rank, world_size=2)) for rank in (0, 1)]
    assert whole.item() == pytest.approx((parts[0] + parts[1]).item() / 2, rel=1e-5)
    parts = [loss_of(objective, autoencoder, GlobalBatch(20, 4, 3, 0, micro_step=m, micro_steps=2)) for m in (0, 1)]
    assert whole.item() == pytest.approx((parts[0] + parts[1]).item() / 2, rel=1e-5)


def test_the_task_loss_is_the_cross_entropy_of_labels_and_knows_no_target():
    autoencoder, objective = make_objective(function_loss=0.0, task_loss=2.0)
    written = autoencoder.normalizer.normalize(make_vectors()[:8])
    first, second = (
        loss_of(objective, Written(vectors), GlobalBatch(20, 8, 0, 0)) for vectors in (written, written.flip(0))
    )
    assert first.item() == pytest.approx(second.item(), rel=1e-5)
    activations, labels = objective._pool_of(0).draw_labelled(16, GlobalBatch(20, 8, 0, 0).shared_generator())
    logits = objective.functions(make_vectors()[:8], activations)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(8))
    assert first.item() == pytest.approx(2 * expected.item(), rel=1e-4)


def test_the_task_loss_of_a_network_of_several_tasks_is_by_the_labels_of_its_own():
    options = {"function_loss": 0.0, "task_loss": 1.0, "targets": "seen", "latent_noise": 0.0}
    autoencoder, plain = make_objective(**options)
    class_labels = torch.stack([torch.arange(10).roll(row) for row in range(20)])
    objective = make_objective(class_labels=class_labels, **options)[1]
    batch = GlobalBatch(20, 8, 0, 0)
    vectors = make_vectors()[batch.indices]
    found = loss_of(objective, Written(autoencoder.normalizer.normalize(vectors)), batch)
    activations, labels = objective._pool_of(0).draw_labelled(16, GlobalBatch(20, 8, 0, 0).shared_generator())
    logits = objective.functions(vectors, activations)
    own = torch.stack([class_labels[row][labels] for row in batch.indices])
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(logits.mT, own).item(), rel=1e-4)
    others = loss_of(plain, Written(autoencoder.normalizer.normalize(vectors)), GlobalBatch(20, 8, 0, 0))
    assert abs(others.item() - found.item()) > 1e-3


def test_combinations_of_networks_of_several_tasks_have_no_labels():
    with pytest.raises(ValueError, match=r"expected .*targets.* with a task_loss for networks of several tasks"):
        make_objective(class_labels=torch.zeros(20, 10, dtype=torch.int64), task_loss=1.0, targets="combinations")


CLASS_LABELS = torch.stack([torch.arange(10).roll(row) for row in range(20)])


def test_networks_of_several_tasks_are_written_beside_analogies_of_them():
    autoencoder, objective = make_objective(class_labels=CLASS_LABELS)
    batch = GlobalBatch(20, 8, 0, 0)
    (rows,) = objective.targets.draw(batch)
    assert torch.equal(rows[:, 0], batch.indices) and objective.describe() == {"combined_networks": 3}
    assert (rows[::2] == rows[::2, :1]).all() and (rows[1::2, 1:] != rows[1::2, :1]).any(1).all()
    assert objective.targets.is_network(rows).tolist() == [1, 0] * 4
    latents, seen = objective.targets.latents(rows), autoencoder.encode(make_vectors()[rows[:, 0]]).latents.flatten(1)
    assert torch.allclose(latents[::2], seen[::2], atol=1e-4) and not torch.allclose(
        latents[1::2], seen[1::2], atol=0.1
    )
    assert make_objective(class_labels=CLASS_LABELS, function_loss=0.0, task_loss=1.0)[1].targets.num_combined == 0


def test_the_function_loss_of_analogies_is_the_cross_entropy_to_their_probabilities():
    autoencoder, objective = make_objective(targets="analogies", function_loss=2.0)
    batch, vectors = GlobalBatch(20, 8, 0, 0), make_vectors()
    written = Written(autoencoder.normalizer.normalize(vectors[:8]))
    found = loss_of(objective, written, batch)
    (rows,) = objective.targets.draw(GlobalBatch(20, 8, 0, 0))
    activations, probabilities = objective._pool_of(0).draw(16, GlobalBatch(20, 8, 0, 0).shared_generator())
    logits = objective.functions(vectors, activations)
    assert torch.allclose(probabilities.transpose(0, 1), logits.softmax(-1), atol=1e-5)
    wanted = analogies(logits.softmax(-1), rows)
    expected = -(wanted * logits[:8].log_softmax(-1)).sum(-1).mean()
    assert found.item() == pytest.approx(2 * expected.item(), rel=1e-4)


def test_labels_and_parameters_are_of_networks_and_of_no_analogy():
    options = {"class_labels": CLASS_LABELS, "targets": "analogies", "function_loss": 1e-9}
    batch, vectors = GlobalBatch(20, 8, 0, 0), make_vectors()
    for losses in ({"task_loss": 1.0}, {"weight_loss": 1.0}):
        autoencoder, objective = make_objective(**options, **losses)
        written = autoencoder.normalizer.normalize(vectors[batch.indices]) + 0.5
        other = written.clone()
        other[1::2] += 1
        first, second = (
            loss_of(objective, Written(each), GlobalBatch(20, 8, 0, 0)).item() for each in (written, other)
        )
        assert first == pytest.approx(second, rel=1e-4) and first > 0.1
        other[0] += 1
        assert abs(loss_of(objective, Written(other), GlobalBatch(20, 8, 0, 0)).item() - first) > 1e-2
    assert first == pytest.approx(0.25 / 2, rel=1e-3)


def test_analogies_are_learned_by_the_function_loss():
    with pytest.raises(ValueError, match=r"expected a function_loss with targets=analogies.*found 0"):
        config_of(targets="analogies", function_loss=0.0, task_loss=1.0)


def test_the_weight_loss_is_the_distance_to_combined_parameters():
    autoencoder, objective = make_objective(function_loss=0.0, weight_loss=1.0, targets="combinations")
    batch = GlobalBatch(20, 8, 0, 0)
    target = objective.targets.draw(batch)[0] @ autoencoder.normalizer.normalize(make_vectors())
    loss = loss_of(objective, Written(target + 0.5), GlobalBatch(20, 8, 0, 0))
    assert loss.item() == pytest.approx(0.25, rel=1e-3)


def test_inputs_on_which_networks_differ_are_drawn_more_often():
    _, objective = make_objective(pool_size=64, inputs_per_step=16)
    pool = objective._pool_of(0)
    variance = pool._functions.softmax(-1).var(1).sum(-1)
    assert torch.allclose(pool._telling, variance + 0.01 * variance.mean())
    pool._telling[::2] = 0
    drawn = pool.draw(16, torch.Generator().manual_seed(0))[1]
    assert all((drawn[[index]] == pool._functions[1::2]).all((1, 2)).any() for index in range(16))


def test_there_are_new_inputs_after_so_many_steps():
    _, objective = make_objective(pool_steps=5)
    first = objective._pool_of(4)
    assert objective._pool_of(0) is first and objective._pool_of(5) is not first
    assert torch.equal(objective._pool_of(3)._functions, first._functions)


def test_memory_bounds_the_pool():
    _, objective = make_objective(pool_size=10_000, max_pool_mb=1)
    pool = objective._pool_of(0)
    taken = pool._functions.nbytes + sum(part.nbytes for part in pool._inputs)
    assert 2**19 < taken <= 2**20
    with pytest.raises(
        ValueError, match=r"outputs of 20 networks on inputs_per_step=\d+ inputs.*give max_pool_mb=\d+ or more"
    ):
        make_objective(inputs_per_step=1500, max_pool_mb=1)[1]._pool_of(0)


def populations(distance):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(120, 30, generator=generator)
    rows[:, 0] += distance * (torch.arange(120) % 2)
    rows[:, 1] += distance * (torch.arange(120) % 3)
    return rows


def test_combined_are_all_networks_of_one_population_and_those_of_each_of_several():
    assert choose_neighbours(populations(0), "auto") == 120
    found = choose_neighbours(populations(100), "auto")
    assert 8 <= found <= 20
    kinds = torch.arange(120) % 6
    assert all((kinds[row] == kinds[index]).all() for index, row in enumerate(nearest(populations(100), found)))
    assert choose_neighbours(populations(100), "combinations") == 120
    assert choose_neighbours(populations(0), "seen") == 0


def test_normal_weights_draw_the_gaussian_of_the_rows():
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    weights = normal_weights(torch.randn(40_000, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    drawn = weights @ rows
    assert torch.allclose(drawn.mean(0), rows.mean(0), atol=0.05)
    assert torch.allclose(torch.cov(drawn.T), torch.cov(rows.T), atol=0.05)


def test_the_stage_learns_to_write_functions_and_its_gate_says_so(dataset, tmp_path):
    autoencoder, report = train(
        dataset, tmp_path / "long", steps=150, learning_rate=1e-2, latent_channels=12, match_diversity=False
    )
    short = train(dataset, tmp_path / "short", steps=1, latent_channels=12, match_diversity=False)[1]
    assert report == json.loads((tmp_path / "long" / "reconstruction.json").read_text())
    assert report["train_explained_variance"] > 0.5 > short["train_explained_variance"]
    assert report["compares"] == "functions" and report["combined_networks"] == 18
    assert isinstance(autoencoder, AutoencoderFunctional) and not autoencoder.training


def test_resumed_it_is_the_same_to_the_bit(dataset, tmp_path):
    options = {"checkpointing_steps": 4, "checkpoints_total_limit": 9, "steps": 12, "use_ema": True}
    train(dataset, tmp_path / "whole", **options)
    # Its pool is that of steps 5 to 9.
    train(dataset, tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-8"), **options)
    one, other = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("whole", "resumed"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_not_finite_stops_it(dataset, tmp_path):
    with pytest.raises(NonFiniteLossError, match="autoencoder"):
        train(dataset, tmp_path / "run", learning_rate=1e6, steps=40)


def test_bfloat16_learns_as_float32(dataset, tmp_path):
    options = {"steps": 60, "learning_rate": 1e-2, "match_diversity": False}
    plain, half = (train(dataset, tmp_path / p, mixed_precision=p, **options)[1] for p in ("no", "bf16"))
    assert half["train_explained_variance"] == pytest.approx(plain["train_explained_variance"], abs=0.1)
    untrained = train(dataset, tmp_path / "untrained", **{**options, "steps": 1})[1]
    assert half["train_explained_variance"] > untrained["train_explained_variance"] + 0.1


def test_offsets_are_from_the_network_with_the_least_validation_loss(dataset, tmp_path):
    vectors = ParameterDataset(dataset).vectors()
    rows = split_rows(len(vectors), FUNCTIONAL.get("holdout_every", 10))[0]
    losses = make_gate_evaluator(ParameterDataset(dataset)).nll(vectors[rows])
    autoencoder, report = train(dataset, tmp_path / "run", steps=1)
    assert report["reference"] == losses.argmin()
    reference = autoencoder.normalizer.denormalize(autoencoder.decoder.reference[None])[0]
    assert torch.allclose(reference, vectors[rows][losses.argmin()], atol=1e-5)


def test_without_task_or_base_model_nobody_knows_what_networks_compute(tmp_path):
    save_parameter_dataset(make_vectors(), make_layout(), tmp_path / "bare")
    with pytest.raises(ValueError, match=r"expected a base model in .*bare, .*take kind=pdiff"):
        train_autoencoder(tmp_path / "bare", tmp_path / "out", config_of())


def test_some_loss_has_to_count():
    with pytest.raises(ValueError, match="expected a loss with a weight above 0"):
        config_of(function_loss=0.0)


REPORT = {"explained_variance": 0.8, "accuracy_drop": 0.0, "num_train": 50, "agreement_own": 0.98}
REPORT |= {"agreement_other": 0.97, "agreement_ci95": [0.005, 0.015], "disagreement_ratio": 1.0}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"explained_variance": 0.03}, "explains 3.0% of what held-out networks compute differently"),
        ({"explained_variance": float("nan")}, "explains nan%"),
        ({"accuracy_drop": 0.05}, "loses 5.00 points of accuracy, expected at most 1.00"),
        ({"agreement_ci95": [-0.01, 0.01]}, "agree with their own original on 98.0% and with others on 97.0%"),
        (
            {"analogies_agreement": 0.92},
            "no.* was trained on which agree with what was wanted on 92.0% of the examples",
        ),
    ],
)
def test_the_gate(changed, problem):
    config = AutoencoderFunctionalConfig()
    check_functions(REPORT, config)
    with pytest.raises(PoorReconstructionError, match=problem):
        check_functions({**REPORT, **changed}, config)
    check_functions({**REPORT, **changed}, config.model_copy(update={"allow_poor_reconstruction": True}))


def test_the_gate_asks_for_functions_that_no_network_has(dataset):
    dataset, config = ParameterDataset(dataset), config_of()
    evaluator, vectors, autoencoder = (
        make_gate_evaluator(dataset),
        make_vectors(),
        config.build(make_layout().to_dict()),
    )
    autoencoder.fit(vectors, make_images(), make_network(0), 3, probabilities=True)
    with torch.no_grad():
        for parameter in autoencoder.decoder.parameters():
            parameter.zero_()
    # It writes its reference whatever it is asked for, and analogies of one network with itself are that network.
    same, other = (vectors[[row]].expand(4, -1) for row in (3, 5))
    own, found = (measure_functions(autoencoder.eval(), rows, rows[:1], evaluator) for rows in (same, other))
    assert own["analogies_agreement"] == 1
    assert own["accuracy_drop"] == pytest.approx(0, abs=1e-9)
    answers = evaluator.predictions(vectors[[3, 5]])
    assert found["analogies_agreement"] == pytest.approx((answers[0] == answers[1]).double().mean().item())
    check_functions({**REPORT, "analogies_agreement": 0.935}, AutoencoderFunctionalConfig())


def test_analogies_of_the_gate_are_of_a_held_out_network_and_two_that_were_trained_on(dataset):
    dataset, config, vectors = ParameterDataset(dataset), config_of(), make_vectors()
    autoencoder = config.build(make_layout().to_dict())
    autoencoder.fit(vectors, make_images(), make_network(0), probabilities=True)
    asked = []
    autoencoder.decoder.register_forward_hook(lambda _, given, written: asked.append(given[0]))
    measure_functions(autoencoder.eval(), vectors[:2], vectors[[5]], make_gate_evaluator(dataset))
    own, first, second = autoencoder.values(vectors[[5, 0, 1]])
    wanted = analogies(torch.stack([own, first, second]), torch.tensor([[0, 0, 0], [0, 1, 2], [0, 2, 1]]))
    found = asked[-1].unique(dim=0)
    assert torch.cdist(autoencoder.encoder.scores(wanted), found).amin(1).max() < 1e-4 and len(asked[-1]) == 100
    assert torch.cdist(found, autoencoder.encoder.scores(wanted)).amin(1).max() < 1e-4


def test_disagreements_are_shares_of_examples():
    answers = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0]])
    assert disagreements(answers, answers).tolist() == [[0, 0.25], [0.25, 0]]


class Confident:
    """Answers of networks whose first value says how far they are from agreeing."""

    def __init__(self, num=4000):
        self.edges = torch.linspace(0, 1, num)

    def predictions(self, vectors):
        return (
            vectors[:, :1].double().abs() * (1 + torch.arange(len(vectors))[:, None]) / len(vectors) > self.edges
        ).long()


@pytest.mark.parametrize(("written", "gain"), [(0.4, 1.25), (0.5, 1.0), (0.8, 1.0), (0.1, 2.0)])
def test_the_gain_is_the_least_by_which_drawn_networks_disagree_as_those_seen(written, gain):
    autoencoder, _ = make_objective(hidden=(1,), latent_channels=6)
    seen = torch.full((8, make_layout().num_parameters), 0.5)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("gain", torch.ones(()))

        def forward(self, latents):
            return written * self.gain + torch.zeros(len(latents), make_layout().num_parameters)

    autoencoder.decoder = Decoder()
    autoencoder.normalizer.mean.zero_()
    autoencoder.normalizer.std.fill_(1)
    report = match_diversity(autoencoder, torch.zeros(8, 6), seen, Confident())
    assert report["gain"] == pytest.approx(gain, abs=0.02) and autoencoder.decoder.gain == report["gain"]
    ratio = report["drawn_disagreement"] / report["seen_disagreement"]
    assert ratio == pytest.approx(written / 0.5, rel=0.01)


def test_the_gain_is_part_of_the_autoencoder(dataset, tmp_path):
    _, report = train(dataset, tmp_path / "matched", steps=60, learning_rate=1e-2)
    assert report["combined_networks"] == 18 and 1 <= report["gain"] <= 2
    loaded = AutoencoderFunctional.from_pretrained(tmp_path / "matched")
    assert loaded.decoder.gain.item() == pytest.approx(report["gain"])
    assert "gain" not in train(dataset, tmp_path / "plain", steps=1, match_diversity=False)[1]
