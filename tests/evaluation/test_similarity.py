import pytest
import torch

from pdiff_hf.evaluation import similarity
from pdiff_hf.evaluation.similarity import measure_nearness, nearest_distance, wrong_iou


def test_wrong_iou_follows_the_definition_for_every_pair():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (50,), generator=generator)
    a, b = (torch.randint(4, (num, 50), generator=generator) for num in (3, 5))
    iou = wrong_iou(a != labels, b != labels)
    for i in range(3):
        for j in range(5):
            wrong_a = set((a[i] != labels).nonzero()[:, 0].tolist())
            wrong_b = set((b[j] != labels).nonzero()[:, 0].tolist())
            assert iou[i, j].item() == pytest.approx(len(wrong_a & wrong_b) / len(wrong_a | wrong_b), abs=1e-6)


def test_networks_without_mistakes_are_alike():
    none, one = torch.tensor([[False, False, False]]), torch.tensor([[False, False, True]])
    assert wrong_iou(none, none).item() == 1
    assert wrong_iou(none, one).item() == 0


def test_wrong_iou_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"on the same examples, found \(1, 2\) and \(1, 3\)"):
        wrong_iou(torch.zeros(1, 2), torch.zeros(1, 3))


@pytest.mark.parametrize("block_values", [7, similarity.BLOCK_VALUES])
def test_nearest_distance_equals_cdist(block_values, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_VALUES", block_values)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 11, generator=generator), torch.randn(6, 11, generator=generator)
    torch.testing.assert_close(nearest_distance(a, b), torch.cdist(a, b).min(1).values)


def test_leave_one_out_ignores_the_row_itself():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])
    assert nearest_distance(rows, rows).tolist() == [0, 0, 0]
    assert nearest_distance(rows, rows, exclude_self=True).tolist() == [5, 1, 1]


def test_distance_is_exact_for_close_rows_far_from_the_origin():
    b = 1000 + 0.01 * torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    a = b.clone()
    a[:, 0] += 2**-10
    # A float32 Gram matrix has errors of about 1 here, and finds other neighbours.
    torch.testing.assert_close(nearest_distance(a, b), a[:, 0] - b[:, 0], atol=1e-7, rtol=0)
    assert (nearest_distance(b, b) == 0).all()


def test_single_row_has_no_other_neighbour():
    row = torch.ones(1, 3)
    assert nearest_distance(row, row, exclude_self=True).isinf().all()


def test_exclude_self_needs_one_set():
    with pytest.raises(ValueError, match="pass the set twice"):
        nearest_distance(torch.ones(2, 3), torch.ones(3, 3), exclude_self=True)


@pytest.mark.parametrize("block_values", [7, similarity.BLOCK_VALUES])
def test_nearest_cosine_equals_cosine_similarity(block_values, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_VALUES", block_values)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 11, generator=generator), torch.randn(6, 11, generator=generator)
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(measure_nearness(a, b).cosine, expected.max(1).values)
    own = torch.nn.functional.cosine_similarity(a[:, None], a[None], dim=-1).fill_diagonal_(-1)
    torch.testing.assert_close(measure_nearness(a, a, exclude_self=True).cosine, own.max(1).values)


def test_nearest_cosine_of_vectors_without_direction_or_neighbour():
    assert measure_nearness(torch.zeros(1, 3), torch.ones(2, 3)).cosine.item() == 0
    assert measure_nearness(torch.ones(1, 3), torch.ones(1, 3), exclude_self=True).cosine.isnan().all()
    with pytest.raises(ValueError, match="pass the set twice"):
        measure_nearness(torch.ones(2, 3), torch.ones(3, 3), exclude_self=True)


@pytest.mark.parametrize("block_values", [70_000, similarity.BLOCK_VALUES])
def test_spread_of_averages_is_one_over_the_root_of_their_number(block_values, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_VALUES", block_values)
    # Far from the origin, which plays no part.
    originals = 100 + torch.randn(64, 2000, generator=torch.Generator().manual_seed(0))
    assert measure_nearness(originals, originals).spread == pytest.approx(1)
    averages = originals.reshape(4, 16, 2000).mean(1)
    # 1 / sqrt(16), less the degree of freedom that the mean takes; over 6000 values the error is about 1 %.
    assert measure_nearness(averages, originals).spread == pytest.approx((3 / 63) ** 0.5, rel=0.03)
    assert measure_nearness(originals.mean(0, keepdim=True), originals).spread == pytest.approx(0, abs=1e-5)


def test_spread_without_a_yardstick_is_none():
    same = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).expand(7, 5)
    assert measure_nearness(same, same).spread is None
    assert measure_nearness(torch.full((1, 5), float("nan")), torch.eye(5)).spread is None
