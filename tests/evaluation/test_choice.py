import pytest
import torch
from torch import nn

from pdiff_hf.evaluation.choice import RUNGS, choose_networks, make_rungs
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.layout import ParameterLayout

NUM_IMAGES = 400


class CountingEvaluator(ParameterEvaluator):
    """Counts images times networks, of itself and of those it was reordered into."""

    computed = 0

    def predict(self, vectors, num_images=None):
        CountingEvaluator.computed += len(vectors) * (num_images or len(self.labels))
        return super().predict(vectors, num_images)


def make_evaluator(batch_size=20, cls=ParameterEvaluator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    images = torch.randn(NUM_IMAGES, 3, 3, 3)
    logits = model(images).detach()
    # Labels that the model gets right in most cases, as a trained one does.
    labels = (logits + 0.1 * torch.randn(logits.shape)).argmax(1)
    layout = ParameterLayout.from_model(model)
    return cls(model, layout, images, labels, batch_size=batch_size), layout.flatten(model)


def make_vectors(own, num, scale=0.02):
    return own + scale * torch.randn(num, len(own), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=[0.005, 0.05], ids=["alike", "diverse"])
def drawn(request):
    evaluator, own = make_evaluator(cls=CountingEvaluator)
    vectors = make_vectors(own, 1000, request.param)
    return evaluator, vectors, evaluator.predict(vectors)


def full_ranking(output):
    return sorted(range(len(output.nll)), key=lambda row: (-output.accuracy[row].item(), output.nll[row].item()))


def test_chosen_are_the_best_at_little_more_than_a_tenth_of_the_cost(drawn):
    evaluator, vectors, output = drawn
    CountingEvaluator.computed = 0
    selection = choose_networks(evaluator, vectors, top=5)
    assert CountingEvaluator.computed <= 0.13 * len(vectors) * NUM_IMAGES
    reported = selection.num_pilots * NUM_IMAGES + sum(networks * images for networks, images in selection.rungs)
    assert reported == CountingEvaluator.computed
    assert selection.rows[0] == full_ranking(output)[0]
    # A hundred draws would find a network of rank 10 at best, on average.
    assert set(selection.rows.tolist()) <= set(full_ranking(output)[:10])


def test_what_is_reported_of_the_chosen_is_measured_on_all_images(drawn):
    evaluator, vectors, output = drawn
    selection = choose_networks(evaluator, vectors, top=5)
    assert torch.equal(selection.vectors, vectors[selection.rows])
    assert torch.equal(selection.score, output.accuracy[selection.rows])
    # Sums of float32 in another order.
    torch.testing.assert_close(selection.ties, output.nll[selection.rows], atol=1e-6, rtol=1e-5)
    keys = list(zip((-selection.score).tolist(), selection.ties.tolist(), strict=True))
    assert keys == sorted(keys)
    # There were ties.
    assert len(set(selection.score.tolist())) < 5


@pytest.mark.parametrize("num", [1, 10, 50])
def test_few_networks_are_all_ranked(num):
    evaluator, own = make_evaluator()
    vectors = make_vectors(own, num)
    selection = choose_networks(evaluator, vectors, top=num)
    assert selection.rows.tolist() == full_ranking(evaluator.predict(vectors))
    assert selection.rungs == [(num, NUM_IMAGES)] and selection.num_pilots == 0


class DecodedRows:
    """Gives rows when asked for, and never more than a chunk of them."""

    def __init__(self, vectors):
        self.vectors = vectors
        self.largest = 0

    def __len__(self):
        return len(self.vectors)

    def __getitem__(self, rows):
        self.largest = max(self.largest, len(rows))
        return self.vectors[rows]


def test_rows_are_asked_for_in_chunks(drawn, monkeypatch):
    evaluator, vectors, _ = drawn
    monkeypatch.setattr("pdiff_hf.evaluation.choice.CHUNK_BYTES", 100 * 4 * vectors.shape[1])
    decoded = DecodedRows(vectors)
    assert torch.equal(choose_networks(evaluator, decoded, 3).rows, choose_networks(evaluator, vectors, 3).rows)
    assert decoded.largest == 100


@pytest.mark.parametrize("num", [16, 300])
def test_networks_that_are_not_finite_are_dropped(num):
    evaluator, own = make_evaluator()
    vectors = make_vectors(own, num)
    best = full_ranking(evaluator.predict(vectors))[0]
    vectors[best, 3] = torch.nan
    vectors[(best + 1) % num, 3] = torch.inf
    # Finite itself, but the outputs are not.
    vectors[(best + 2) % num] *= 1e30
    selection = choose_networks(evaluator, vectors, top=num - 3 if num == 16 else 3)
    assert selection.num_dropped == 3
    assert not {best, (best + 1) % num, (best + 2) % num} & set(selection.rows.tolist())
    assert selection.ties.isfinite().all()


def test_infinite_values_behind_a_relu_take_no_place_in_a_rung():
    evaluator, own = make_evaluator()
    vectors = make_vectors(own, 300)
    first_bias = 27 * 16
    vectors[:290, first_bias] = -torch.inf
    assert evaluator.predict(vectors).nll.isfinite().all()
    selection = choose_networks(evaluator, vectors, top=8)
    assert selection.num_dropped == 290 and min(selection.rows) >= 290


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("num", [8, 300])
def test_too_few_finite_networks_are_an_error(num, value):
    evaluator, own = make_evaluator()
    vectors = make_vectors(own, num)
    vectors[1:] = value
    assert choose_networks(evaluator, vectors).rows.tolist() == [0]
    with pytest.raises(ValueError, match=f"at least 2 networks with finite .* {num - 1} of {num}"):
        choose_networks(evaluator, vectors, top=2)
    vectors[:] = value
    with pytest.raises(ValueError, match=f"at least 1 networks with finite .* {num} of {num}"):
        choose_networks(evaluator, vectors)


@pytest.mark.parametrize("top", [0, 11])
def test_top_out_of_range(top):
    evaluator, own = make_evaluator()
    with pytest.raises(ValueError, match=r"expected top from 1 to the number of networks, 10, found"):
        choose_networks(evaluator, make_vectors(own, 10), top=top)


def test_rungs():
    assert make_rungs(1000, 2000, 100, top=5) == [(1000, 100), (150, 400), (30, 2000)]
    # Whole batches, and no rung that tells no more than the one before it.
    assert make_rungs(1000, 2000, 150, top=1) == [(1000, 150), (150, 450), (30, 2000)]
    assert make_rungs(1000, 300, 300, top=1) == [(1000, 300)]
    assert make_rungs(100, 2000, 100, top=5) == [(100, 100), (20, 2000)]
    assert make_rungs(30, 2000, 100, top=10) == [(30, 2000)]
    assert make_rungs(1000, 2000, 100, top=100) == [(1000, 100), (400, 2000)]
    assert RUNGS[0][0] == 1 and RUNGS[-1][1] == 1


def test_first_images_and_another_order_are_the_same_numbers():
    evaluator, own = make_evaluator(batch_size=150)
    vectors = make_vectors(own, 20)
    output = evaluator.predict(vectors)
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(0))
    for num_images in (1, 150, 151, NUM_IMAGES):
        first = evaluator.reordered(order).predict(vectors, num_images)
        rows = order[:num_images]
        assert torch.equal(first.predictions, output.predictions[:, rows])
        torch.testing.assert_close(first.losses, output.losses[:, rows], atol=1e-6, rtol=1e-5)
        right = (output.predictions == evaluator.labels)[:, rows]
        torch.testing.assert_close(first.accuracy, right.float().mean(1))
        torch.testing.assert_close(first.nll, output.losses[:, rows].mean(1))
    assert torch.equal(evaluator.predict(vectors).predictions, output.predictions)
    for num_images in (0, NUM_IMAGES + 1):
        with pytest.raises(ValueError, match="expected num_images from 1 to 400"):
            evaluator.predict(vectors, num_images)
