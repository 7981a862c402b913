import math

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

from pdiff_hf.data import vectors as vectors_module
from pdiff_hf.data.vectors import StoredVectors, empty_vectors
from pdiff_hf.evaluation import baselines
from pdiff_hf.evaluation.baselines import interpolations, uniform_soup
from pdiff_hf.evaluation.groups import GROUPS, build_groups
from pdiff_hf.evaluation.merging import checkpoints
from pdiff_hf.evaluation.merging.checkpoints import (
    SCALES,
    TaskVectors,
    dare,
    merged_dare,
    merged_ties,
    model_stock,
    on_arc,
    slerp,
    task_arithmetic,
    ties,
)
from pdiff_hf.layout import ParameterLayout


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_tensor(size):
    return ParameterLayout.from_model(nn.ParameterDict({"w": torch.zeros(size)}))


@pytest.fixture
def layout():
    """A perceptron with running statistics, one of which is merged as a logarithm."""
    return ParameterLayout.from_model(nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)), buffers=True)


@pytest.fixture
def setting(layout):
    """A start, and five checkpoints that went on from it in directions with something in common."""
    start = torch.randn(1, layout.num_parameters, generator=seeded(1))
    shared = torch.randn(1, layout.num_parameters, generator=seeded(2))
    originals = start + 0.1 * shared + 0.1 * torch.randn(5, layout.num_parameters, generator=seeded(3))
    for spec in (spec for spec in layout.tensors if spec.transform == "log"):
        own = slice(spec.offset, spec.offset + spec.numel)
        start[:, own], originals[:, own] = start[:, own].exp(), originals[:, own].exp()
    return layout, start, originals


def test_slerp_of_orthogonal_unit_vectors_is_on_the_circle():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    found = [on_arc(a, b, torch.tensor([[t]]))[0] for t in (0.0, 0.5, 1 / 3, 1.0)]
    expected = [[1, 0], [math.sqrt(0.5)] * 2, [math.sqrt(0.75), 0.5], [0, 1]]
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected))


def test_slerp_of_one_direction_is_a_line_and_of_zeros_finite():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]])
    b = torch.tensor([[6.0, 8.0], [2.0, 2.0], [-1.0, -2.0]])
    torch.testing.assert_close(on_arc(a, b, torch.full((3, 1), 0.25)), torch.lerp(a, b, 0.25))


def test_slerp_takes_the_pairs_and_places_of_interpolation_and_every_tensor_alone(setting):
    layout, _, originals = setting
    # Of one length, every tensor of its own: a mean is shorter, what is on the arc is not.
    for spec in layout.tensors:
        own = originals[:, spec.offset : spec.offset + spec.numel]
        own /= own.norm(dim=1, keepdim=True)
    arcs, lines = (
        make(num=20)
        for make in (
            lambda num: slerp(originals, layout, num, seeded()),
            lambda num: interpolations(originals, num, seeded()),
        )
    )
    for spec in layout.tensors:
        on, below = (rows[:, spec.offset : spec.offset + spec.numel] for rows in (arcs, lines))
        torch.testing.assert_close(on.norm(dim=1), torch.ones(20))
        assert (below.norm(dim=1) < 1).all()
    cosines = torch.nn.functional.cosine_similarity(arcs, lines)
    assert (cosines > 0.98).all() and not torch.allclose(arcs, lines, atol=1e-3)
    assert torch.equal(slerp(originals[:1], layout, 2, seeded()), originals[:1].repeat(2, 1))


def test_ties_of_vectors_made_by_hand():
    # Half of the values stay: 4 and -3; 2 and -5; 6 and 1 of rows 0 to 2.
    rows = torch.tensor([[4.0, -3.0, 1.0, 0.5], [2.0, 0.1, 0.2, -5.0], [0.1, 6.0, 0.2, 1.0]])
    vectors = TaskVectors(rows, one_tensor(4), torch.zeros(1, 4))
    # Column 1 has -3 and 6: plus is the majority by sum, and its mean is 6; column 3 has -5 and 1.
    torch.testing.assert_close(merged_ties(vectors, 0.5), torch.tensor([3.0, 6.0, 0.0, -5.0]))


def test_ties_is_that_of_peft(setting):
    from peft.utils import merge_utils

    layout, start, originals = setting
    vectors = TaskVectors(originals, layout, start)
    for spec, own in vectors.tensors:
        rows = list(vectors.rows(slice(None), own))
        expected = merge_utils.ties(rows, torch.ones(len(rows)), 0.3)
        torch.testing.assert_close(merged_ties(vectors, 0.3)[own], expected, msg=spec.name)


def test_dare_drops_values_and_has_the_mean_of_all():
    rows = torch.full((1, 20_000), 2.0)
    vectors = TaskVectors(rows, one_tensor(20_000), torch.zeros(1, 20_000))
    found = merged_dare(vectors, 0.25, seeded())
    assert set(found.tolist()) == {0.0, 8.0}
    # 20 000 draws: the standard error of the share is 0.003.
    assert abs((found > 0).float().mean() - 0.25) < 0.015
    many = TaskVectors(rows.repeat(400, 1)[:, :50], one_tensor(50), torch.zeros(1, 50))
    # A mean of 400 values with a deviation of 3.5.
    assert abs(merged_dare(many, 0.25, seeded()).mean() - 2) < 0.1


def test_dare_draws_by_the_given_generator_alone(setting):
    layout, start, originals = setting
    vectors, state = TaskVectors(originals, layout, start), torch.random.get_rng_state()
    first, again, other = (merged_dare(vectors, 0.5, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_scale_and_density_are_those_that_are_worth_most(setting):
    layout, start, originals = setting
    vectors = TaskVectors(originals, layout, start)
    for scale in (0.25, 1.0, 1.5):
        wanted = vectors.networks(vectors.mean(), [scale])
        found, chosen = task_arithmetic(vectors, lambda networks, wanted=wanted: -(networks - wanted).norm(dim=1))
        assert chosen == {"scale": scale, "base": "start"}
        torch.testing.assert_close(found, wanted)
    wanted = vectors.networks(merged_ties(vectors, 0.2), [2.0])
    found, chosen = ties(vectors, lambda networks: -(networks - wanted).norm(dim=1))
    assert chosen == {"density": 0.2, "scale": 2.0, "base": "start"} and torch.equal(found, wanted)
    tried = []
    dare(vectors, lambda networks: tried.append(len(networks)) or torch.zeros(len(networks)), seeded())
    assert tried == [len(SCALES)] * len(checkpoints.DENSITIES)


def test_task_arithmetic_at_scale_1_is_the_mean_but_for_logarithms(setting):
    layout, start, originals = setting
    vectors = TaskVectors(originals, layout, start)
    found, chosen = task_arithmetic(vectors, lambda networks: torch.zeros(len(networks)))
    assert chosen["scale"] == 1
    soup = uniform_soup(originals)
    for spec in layout.tensors:
        own = slice(spec.offset, spec.offset + spec.numel)
        expected = soup[:, own] if spec.transform == "identity" else originals[:, own].log().mean(0, True).exp()
        torch.testing.assert_close(found[:, own], expected)


def test_variances_stay_positive(setting):
    layout, start, originals = setting
    vectors = TaskVectors(originals, layout, start)
    (spec,) = (spec for spec in layout.tensors if spec.transform == "log")
    networks = vectors.networks(-100 * vectors.mean().abs(), [0.25, 1.0])
    assert (networks[:, spec.offset : spec.offset + spec.numel] >= 0).all()
    assert (networks[:1, spec.offset : spec.offset + spec.numel] > 0).all()


def test_model_stock_of_two_at_a_known_angle():
    # 60 degrees: 2 cos / (1 + cos) = 2/3 of the way from the start to the mean.
    rows = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    found = model_stock(TaskVectors(rows, one_tensor(2), torch.zeros(1, 2)))
    torch.testing.assert_close(found, 2 / 3 * rows.mean(0, keepdim=True))


def test_model_stock_of_several_takes_the_mean_cosine_of_pairs(setting):
    layout, start, originals = setting
    vectors = TaskVectors(originals, layout, start)
    found = model_stock(vectors)
    expected = vectors.mean()
    for _, own in vectors.tensors:
        rows = torch.nn.functional.normalize(vectors.rows(slice(None), own), dim=1)
        cosine = ((rows @ rows.T).sum() - 5) / 20
        assert cosine > 0
        expected[own] *= 5 * cosine / (1 + 4 * cosine)
    torch.testing.assert_close(found, vectors.networks(expected, [1.0]))
    # Orthogonal ones have nothing in common but the start.
    apart = TaskVectors(torch.eye(4), one_tensor(4), torch.zeros(1, 4))
    assert not model_stock(apart).any()


def test_merging_one_checkpoint_gives_it(setting, monkeypatch):
    layout, start, originals = setting
    # Without pruning, which peft's functions take for a density as any other.
    monkeypatch.setattr(checkpoints, "DENSITIES", (1.0,))
    monkeypatch.setattr(checkpoints, "SCALES", (1.0,))
    one, worth = TaskVectors(originals[:1], layout, start), lambda networks: torch.zeros(len(networks))
    found = {
        "ties": ties(one, worth)[0],
        "dare": dare(one, worth, seeded())[0],
        "task_arithmetic": task_arithmetic(one, worth)[0],
        "model_stock": model_stock(one),
        "slerp": slerp(originals[:1], layout, 1, seeded()),
    }
    for name, network in found.items():
        torch.testing.assert_close(network, originals[:1], msg=name)


def test_without_a_start_task_vectors_are_from_the_mean(setting):
    layout, start, originals = setting
    vectors = TaskVectors(originals, layout)
    assert vectors.base_name == "mean" and vectors.mean().abs().max() < 1e-6
    torch.testing.assert_close(
        TaskVectors(originals, layout, start).rows(slice(None), slice(0, 3)) + start[:, :3], originals[:, :3]
    )


def test_groups_are_there_where_what_they_need_is(setting):
    layout, start, originals = setting
    merges = {"slerp", "task_arithmetic", "ties", "dare", "model_stock"}

    def made(**given):
        return merges & set(build_groups(originals, originals[:2], layout, **given)[0])

    worth = {"val_worth": lambda networks: -networks[:, 0].abs()}
    assert made() == {"slerp"}
    assert made(**worth, has_peft=True) == {"slerp", "ties", "dare"}
    assert made(**worth, start=start) == {"slerp", "task_arithmetic", "model_stock"}
    assert made(**worth, start=start, has_peft=True) == merges
    # Of factors that multiply, sums are no sums of what they do.
    factors = nn.ParameterDict({"l": nn.ParameterDict({"lora_A": torch.zeros(2, 3), "lora_B": torch.zeros(4, 2)})})
    adapters = ParameterLayout.from_model(factors)
    specs = [vars(spec) | {"transform": "canonical_lora"} for spec in adapters.tensors]
    names = {"l.lora_A": "l.lora_A.default.weight", "l.lora_B": "l.lora_B.default.weight"}
    adapters = ParameterLayout(tuple(type(adapters.tensors[0])(**s | {"name": names[s["name"]]}) for s in specs))
    rows = torch.randn(4, adapters.num_parameters, generator=seeded())
    assert not merges & set(build_groups(rows, rows, adapters, **worth, start=rows[:1], has_peft=True)[0])
    assert all(GROUPS[name].is_single for name in merges - {"slerp"})


def test_merges_in_files_are_those_in_memory(setting, monkeypatch):
    layout, start, originals = setting
    worth = lambda networks: -networks[:, :4].norm(dim=1)  # noqa: E731

    def make(rows):
        vectors = TaskVectors(rows, layout, start)
        return [
            slerp(rows, layout, 3, seeded()),
            ties(vectors, worth)[0],
            dare(vectors, worth, seeded())[0],
            task_arithmetic(vectors, worth)[0],
            model_stock(vectors),
        ]

    expected = make(originals)
    monkeypatch.setattr(vectors_module, "MAX_RESIDENT_BYTES", 0)
    for module in (baselines, checkpoints):
        monkeypatch.setattr(module, "BLOCK_VALUES", 20)
    stored = empty_vectors(len(originals), originals)
    stored[:] = originals
    assert isinstance(stored, StoredVectors)
    for found, known in zip(make(stored), expected, strict=True):
        torch.testing.assert_close(found[:], known, atol=2e-6, rtol=2e-6)
