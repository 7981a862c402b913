import pytest
import torch

from factories import make_dataset
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.order import RowOrder
from pdiff_hf.models.condition_encoder import ConditionEncoder
from pdiff_hf.training.rows import condition_units, hold_out

ONE = RowOrder.of_runs(24).by_run()
THREE = RowOrder.of_runs(8, 10, 6).by_run()


def split(*arguments, **options):
    train, held = (rows.tolist() for rows in hold_out(*arguments, **options))
    assert train == sorted(train) and held == sorted(held) and not set(train) & set(held)
    return train, held


@pytest.mark.parametrize(("share", "number"), [(0.125, 3), (0.5, 12), (0.01, 1), (0.9, 22)])
def test_between_is_drawn_at_random_from_all_rows(share, number):
    train, held = split("between", ONE, share)
    assert len(held) == number and sorted(train + held) == list(range(24))
    assert split("between", ONE, share) == (train, held)
    others = [split("between", ONE, share, seed)[1] for seed in range(1, 5)]
    assert any(other != held for other in others)


def test_between_draws_every_row_equally_often():
    counts = torch.zeros(24)
    for seed in range(800):
        counts[split("between", THREE, 0.25, seed)[1]] += 1
    # Of 800 with probability ¼: five deviations.
    assert ((counts - 200).abs() < 62).all()


def test_rows_of_a_condition_are_drawn_together():
    conditions = torch.arange(12).repeat(2)[:, None].float()
    units = condition_units(conditions, ConditionSpec("vector", 1))
    for seed in range(5):
        train, held = split("between", ONE, 0.25, seed, units)
        assert len(held) == 6 and {row % 12 for row in held}.isdisjoint(row % 12 for row in train)


def test_a_subset_of_classes_and_its_complement_are_drawn_together():
    spec, signs = ConditionSpec.named("classes", [*"abcde"]), torch.tensor([1.0, -1.0])
    conditions = torch.cartesian_prod(*[signs] * 5)
    units = condition_units(conditions, spec)
    assert torch.equal(units, units.flip(0)) and len(units.unique()) == 16


@pytest.mark.parametrize("is_partial", [False, True])
def test_whatever_else_a_condition_says_its_subset_and_the_complement_are_drawn_together(is_partial):
    spec = ConditionSpec.composed(
        ConditionSpec.named("metric", ["val_accuracy"]), ConditionSpec.named("classes", [*"abcde"])
    )
    subsets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)[1:-1]
    encoder = ConditionEncoder(**spec.to_dict(), partial=is_partial)
    rows = torch.cat([torch.linspace(0.5, 1, len(subsets))[:, None], subsets], 1)
    encoder.fit(rows)
    units = condition_units(encoder(rows), spec)
    assert torch.equal(units, units.flip(0)) and len(units.unique()) == 15


@pytest.mark.parametrize(
    ("conditions", "spec"),
    [
        (torch.eye(12).repeat(2, 1), ConditionSpec.named("label", [*"abcdefghijkl"])),
        (torch.arange(4.0).repeat(6)[:, None], ConditionSpec("vector", 1)),
    ],
    ids=["labels", "few"],
)
def test_of_labels_and_of_few_conditions_each_row_is_on_its_own(conditions, spec):
    assert torch.equal(condition_units(conditions, spec), torch.arange(24))


def test_block_is_the_middle_of_a_run_with_a_gap_on_both_sides():
    train, held = split("block", ONE, 0.125)
    assert held == [10, 11, 12]
    assert train == [*range(8), *range(15, 24)]


def test_end_is_the_last_of_a_run():
    assert split("end", ONE, 0.1) == (list(range(22)), [22, 23])


def test_of_several_runs_each_has_its_block_and_its_end():
    train, held = split("block", THREE, 0.25)
    # Of 8, 10 and 6 rows 2 each, and one on either side.
    assert held == [3, 4, 12, 13, 20, 21]
    assert train == [0, 1, 6, 7, 8, 9, 10, 15, 16, 17, 18, 23]
    assert split("end", THREE, 0.25)[1] == [6, 7, 16, 17, 22, 23]


def test_rows_of_a_run_are_taken_in_the_order_of_their_time():
    # Two runs in turns, the second one backwards.
    order = RowOrder(["a", "b"] * 6, [(row if row % 2 == 0 else -row, 0) for row in range(12)])
    assert split("end", order.by_run(), 0.3)[1] == [1, 3, 8, 10]


@pytest.mark.parametrize(("share", "number"), [(0.125, 1), (0.67, 2)])
def test_run_holds_whole_runs_out(share, number):
    train, held = split("run", THREE, share)
    runs = [set(rows) for rows in THREE.values()]
    kept = [run for run in runs if run <= set(held)]
    assert len(kept) == number and set().union(*kept) == set(held)
    assert set(train) == set(range(24)) - set(held)
    assert len({tuple(split("run", THREE, share, seed)[1]) for seed in range(20)}) == 3


@pytest.mark.parametrize(
    ("kind", "runs", "share", "message"),
    [
        ("run", ONE, 0.125, "validate=run with a share of 0.125 leaves none of 24 checkpoints in 1 run to train on"),
        ("run", THREE, 0.9, "leaves none of 24 checkpoints in 3 runs"),
        ("between", RowOrder.of_runs(1).by_run(), 0.125, "leaves none of 1 checkpoints in 1 run"),
        ("block", RowOrder.of_runs(3).by_run(), 0.125, "leaves none of 3 checkpoints in 1 run"),
        ("block", RowOrder.of_runs(*[1] * 30).by_run(), 0.125, "leaves none of 30 checkpoints in 30 runs"),
        ("end", RowOrder.of_runs(*[1] * 30).by_run(), 0.1, "leaves none of 30 checkpoints in 30 runs"),
    ],
)
def test_nothing_left_to_train_on_is_one_line(kind, runs, share, message):
    with pytest.raises(ValueError, match=message) as error:
        hold_out(kind, runs, share)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["validate=run", "validate=block", "validation_share=0.99"])
def test_command_says_it_before_anything_is_written(pdiff, tmp_path, value):
    dataset = make_dataset(tmp_path)
    # 22 rows to train on: with 8 latent values the Gaussian needs 9.
    settings = ["autoencoder.latent_channels=8", f"diffusion.{value}", "diffusion.validation_share=0.4"]
    settings = settings[:2] if "share" in value else settings
    result = pdiff("train", dataset, "--out", tmp_path / "run", *(p for s in settings for p in ("--set", s)))
    code, _, err = result
    [line] = err.strip().splitlines()
    assert code == 2 and not (tmp_path / "run").exists()
    if value == "validate=block":
        assert "the Gaussian of 8 latent values needs at least 9 checkpoints to train on, found 3 without" in line
    else:
        assert '--set "diffusion.validate=' in line and "leaves none of 22 checkpoints in 1 run" in line
