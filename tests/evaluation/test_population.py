"""Populations by hand: networks whose outputs are known, and copies, collapse and populations that are planted."""

import math

import pytest
import torch

from factories import make_network
from pdiff_hf.evaluation.autocorrelation import RunMemory
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.outputs import EvaluatorOutput
from pdiff_hf.evaluation.permutations import permutation_spec
from pdiff_hf.evaluation.population import (
    centred,
    choose_inputs,
    measure_populations,
    nearest_side,
    pair_disagreement,
    unseen_runs,
)
from pdiff_hf.layout import ParameterLayout


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def output_of(logits, targets):
    """What networks with logits `(n, N, C)` do on examples with labels `(P, N)`."""
    logits = torch.as_tensor(logits, dtype=torch.float32)
    weights = (targets >= 0).float()
    weights /= weights.mean(1, keepdim=True)
    predictions = logits.argmax(-1)
    right = predictions == targets[:, None]
    best = (right * weights[:, None]).mean(2).argmax(0)
    right = right[best, torch.arange(len(logits))]
    return EvaluatorOutput(
        right, torch.zeros(right.shape), torch.zeros(len(logits)), predictions, best, logits, weights
    )


def measure(groups, num_seen, targets, names=(), **options):
    """Measure groups of logits; the first `num_seen` of `original` were seen, the others held out."""
    outputs = {name: output_of(logits, targets) for name, logits in groups.items()}
    seen, held_out = torch.arange(len(outputs["original"])).tensor_split([num_seen])
    return measure_populations(outputs, seen, held_out, targets, torch.arange(targets.shape[1]), names, **options)


def on_a_line(*places):
    """Networks with one example and two classes; the distance of two of them is that of their places."""
    return torch.tensor([[[place, -place]] for place in places])


def test_novelty_is_that_of_nearest_neighbours_by_hand():
    # Nearest seen of the held-out 1, 12 and 23: 1, 2 and 3 away. Half of the smallest is 0.5.
    originals = on_a_line(0.0, 10.0, 20.0, 1.0, 12.0, 23.0)
    found = measure({"original": originals, "generated": on_a_line(0.4, 10.7, 15.0)}, 3, torch.tensor([[0]]))
    assert list(found) == ["original", "seen", "seen_redrawn", "generated"]
    generated = found["generated"]
    assert generated.near == pytest.approx((0.4 + 0.7 + 5) / 3 / 2) and generated.copies == pytest.approx(1 / 3)
    # Nearest not seen: 0.6, 1.3 and 3 away.
    assert generated.side == pytest.approx(0.4 / 0.6)
    assert found["original"].near == pytest.approx(1) and found["original"].copies == 0
    for name in ("seen", "seen_redrawn"):
        assert found[name].near == pytest.approx(0, abs=1e-6) and found[name].side == pytest.approx(0, abs=1e-6)
        assert found[name].copies == 1 and found[name].finding == "copying"
    assert found["original"].n == 3 and found["seen_redrawn"].n == 3 and found["original"].finding is None


def test_functions_do_not_see_what_softmax_does_not_see():
    logits = torch.randn(2, 5, 3, generator=generator())
    targets = torch.zeros(1, 5).long()
    shifted = output_of(logits + torch.randn(2, 5, 1, generator=generator(1)), targets)
    torch.testing.assert_close(centred(shifted), centred(output_of(logits, targets)), atol=1e-6, rtol=0)
    one = output_of(torch.tensor([[[3.0, 0.0, 0.0]] * 5]), targets)
    # Centred: 2, -1, -1.
    assert centred(one).norm().item() == pytest.approx(math.sqrt((4 + 1 + 1) / 3))


def answers(*rows, classes=3):
    """Logits that give the classes `(n, N)`."""
    return 4.0 * torch.nn.functional.one_hot(torch.tensor(rows), classes).float()


def test_pairs_minimum_agreement_and_ensemble_by_hand():
    targets = torch.tensor([[0, 1, 2, 0]])
    seen = answers([0, 1, 2, 0], [0, 1, 2, 1])
    held_out = answers([0, 1, 1, 0], [0, 1, 2, 2])
    generated = answers([0, 0, 2, 0], [0, 1, 0, 0], [0, 1, 2, 1])
    found = measure({"original": torch.cat([seen, held_out]), "generated": generated}, 2, targets)
    original, own = found["original"], found["generated"]
    # Held out: wrong on the third and on the fourth example; they differ on both.
    assert original.accuracy == original.accuracy_min == 0.75
    assert original.disagreement == 0.5 and original.iou == 0
    # Generated: each is wrong on another example, so that two differ on both.
    assert own.disagreement == pytest.approx(0.5) and own.disagreement_ratio == pytest.approx(1) and own.iou == 0
    assert own.accuracy_difference.difference == pytest.approx(0, abs=1e-12)
    assert original.ensemble_size == own.ensemble_size == 2
    assert own.fit_share == 1 and own.shares is None and own.num_inputs == 4
    assert own.agreement == pytest.approx((0.75 + 0.75 + 1) / 3)
    one = measure({"original": torch.cat([seen, held_out]), "soup": generated[:1]}, 2, targets)["soup"]
    assert [one.disagreement, one.iou, one.ensemble, one.two_sample_accuracy] == [None] * 4
    assert one.accuracy == 0.75 and one.near is not None


def test_an_ensemble_averages_probabilities():
    targets = torch.tensor([[0, 1]])
    # The first network is sure and right, two others are hardly wrong: so are they together.
    logits = torch.tensor([[[5.0, 0.0], [0.0, 5.0]], [[0.0, 0.1], [0.1, 0.0]], [[0.0, 0.1], [0.1, 0.0]]])
    found = measure({"original": torch.cat([logits, logits]), "generated": logits}, 3, targets)
    assert found["generated"].accuracy == pytest.approx(1 / 3) and found["generated"].ensemble == 1
    assert found["generated"].ensemble_difference.difference == pytest.approx(0, abs=1e-12)


def test_disagreement_counts_examples_by_their_weights():
    predictions = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 1]])
    weights = torch.tensor([[2.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert pair_disagreement(predictions, weights).tolist() == [[0, 0], [0.5, 0]]


def draws(num, seed, width=30):
    """Functions of one Gaussian, as logits of two classes."""
    values = torch.randn(num, width, generator=generator(seed))
    return torch.stack([values, -values], -1)


TARGETS = torch.zeros(1, 30).long()


@pytest.mark.parametrize(("num_seen", "num_held_out"), [(60, 60), (200, 40), (40, 90)])
def test_new_networks_prefer_neither_side_and_copies_are_found(num_seen, num_held_out):
    originals = draws(num_seen + num_held_out, 0)
    copies = originals[torch.randint(num_seen, (50,), generator=generator(1))]
    copies = copies + 0.01 * torch.randn(copies.shape, generator=generator(2))
    found = measure({"original": originals, "generated": draws(50, 3), "copies": copies}, num_seen, TARGETS)
    for name in ("original", "generated"):
        low, high = found[name].ci95.side
        # By trials, it deviates from 1 by 0.02 where both sets are as large, else by up to 0.06.
        assert found[name].side == pytest.approx(1, abs=0.15) and low < 1.1 and high > 0.9
        assert found[name].near == pytest.approx(1, abs=0.05) and found[name].copies == 0
    assert found["copies"].side < 0.05 and found["copies"].near < 0.05 and found["copies"].copies == 1
    assert found["generated"].finding == "equal_population" and found["copies"].finding == "copying"


def test_of_many_networks_seen_few_hold_what_was_copied_and_those_decide():
    """As many seen as not seen are drawn: a tenth of the copied ones is among them, and 0.9 of all say nothing."""
    to_seen, to_unseen = torch.full((30, 100), 1.0), torch.full((30, 10), 1.0)
    to_seen[torch.arange(30), torch.arange(30)] = 0.0
    median, (low, high) = nearest_side(to_seen.double(), to_unseen.double(), generator())
    assert median == low == high == 0


def test_one_network_with_noise_is_collapsed():
    originals, one = draws(80, 0), draws(1, 5)
    generated = one + 0.05 * torch.randn(40, 30, 2, generator=generator(1))
    found = measure({"original": originals, "generated": generated}, 40, TARGETS)["generated"]
    assert found.finding == "collapsed" and found.copies == 0 and found.disagreement_ratio < 0.2
    assert found.ci95.disagreement_ratio[1] < 0.3
    assert found.two_sample_accuracy > 0.95 and found.two_sample_p == found.mmd_p == pytest.approx(1 / 200)


def test_networks_with_hidden_units_in_another_order_are_copies():
    network = make_network()
    layout, spec = ParameterLayout.from_model(network), permutation_spec(network, ParameterLayout.from_model(network))
    vectors = torch.randn(12, layout.num_parameters, generator=generator())
    permuted = vectors[:6].clone()
    for tensor in spec.tensors:
        for axis, layer in ((1, tensor.output), (2, tensor.input)):
            if layer is not None:
                view = tensor.view(permuted)
                view.copy_(view.flip(axis))
    images, labels = torch.randn(40, 1, 2, 2, generator=generator(1)), torch.randint(3, (40,), generator=generator(2))
    evaluator = ParameterEvaluator(network, layout, images, labels)
    inputs = torch.arange(40)
    outputs = {
        name: evaluator.predict(rows, keep=inputs) for name, rows in (("original", vectors), ("generated", permuted))
    }
    found = measure_populations(outputs, inputs[:6], inputs[6:12], evaluator.targets, inputs)["generated"]
    assert (permuted - vectors[:6]).norm(dim=1).min() > 1, "another place in weight space"
    assert found.near == pytest.approx(0, abs=1e-5) and found.copies == 1 and found.agreement == 1


def test_networks_are_compared_within_the_population_that_they_fit_best():
    """Two populations that say 0 or 1 everywhere, and a third of the examples that the second one does not have."""
    targets = torch.tensor([[0] * 6, [1, 1, 1, 1, -1, -1]])
    first, second = [0] * 6, [1, 1, 1, 1, 2, 2]
    originals = answers(first, second, first, second, [0, 0, 0, 0, 0, 1], [1, 1, 1, 2, 0, 1])
    generated = answers(first, second, [1, 1, 1, 0, 2, 2], [2, 2, 2, 2, 2, 0])
    generated *= torch.tensor([2, 1, 2, 1])[:, None, None]
    found = measure({"original": originals, "generated": generated}, 2, targets, ("zero", "one"))
    original, own = found["original"], found["generated"]
    # Held out, in their own populations: 1, 1, 5 of 6, and 3 of 4.
    assert original.accuracy == pytest.approx((1 + 1 + 5 / 6 + 3 / 4) / 4)
    assert own.accuracy == pytest.approx((1 + 1 + 3 / 4 + 1 / 6) / 4)
    # The last one is below 5 of 6 and so fits no population.
    assert own.fit_share == 0.75 and own.shares == {"zero": 0.25, "one": 0.5}
    assert original.shares == {"zero": 0.5, "one": 0.5}
    # Two pairs held out: of the first population they differ on an example of 6, of the second on one of its 4.
    assert original.disagreement == pytest.approx((1 / 6 + 1 / 4) / 2)
    # Of both ensembles of two, the surer network decides.
    assert own.ensemble == pytest.approx((2 * 1 + 2 * 3 / 4) / 4)


def test_functions_are_compared_on_as_many_examples_as_there_is_memory_for(monkeypatch):
    assert torch.equal(choose_inputs(500, 10, 1000), torch.arange(500))
    monkeypatch.setattr("pdiff_hf.evaluation.population.MAX_LOGITS_BYTES", 4 * 10 * 1000 * 50)
    chosen = choose_inputs(500, 10, 1000, seed=3)
    assert len(chosen) == 50 and (chosen[1:] > chosen[:-1]).all() and chosen.max() > 400
    assert torch.equal(chosen, choose_inputs(500, 10, 1000, seed=3))


def test_networks_that_are_not_finite_have_no_distance():
    originals, broken = draws(20, 0), draws(4, 1)
    broken[0, 0, 0] = torch.nan
    broken[1, 0, 0] = torch.inf
    found = measure({"original": originals, "generated": broken}, 10, TARGETS)["generated"]
    assert found.near is None and found.copies == 0 and found.two_sample_accuracy is None
    assert found.accuracy is not None and found.disagreement is not None


def test_rows_are_apart_where_none_held_out_depends_on_one_seen():
    seen, held_out = unseen_runs(RunMemory.independent(12), 3)
    assert held_out.tolist() == [1, 4, 7, 10] and len(seen) == 8
    assert unseen_runs(RunMemory.independent(12), None) is None
    trajectory = RunMemory(torch.zeros(12).long(), torch.arange(12), torch.tensor([4.0], dtype=torch.float64))
    assert unseen_runs(trajectory, 3) is None
    unknown = RunMemory(torch.zeros(12).long(), torch.arange(12), torch.tensor([math.nan], dtype=torch.float64))
    assert unseen_runs(unknown, 3) is None, "files in an order that nobody knows may be neighbours"
    assert unseen_runs(RunMemory.independent(3), 3) is None, "one held out is no population"
