"""Two gloo processes against one. They are started once, and each test looks at another thing that they did."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from factories import make_dataset
from functional_zoo import make_zoo
from processes import launch_two
from small_tasks import make_tasks
from two_processes import chosen, functional, stages

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def dataset(folder):
    return make_dataset(folder)


@pytest.fixture(scope="module")
def one(dataset, folder):
    """Log of one process, which leaves checkpoints of step 10."""
    return stages(dataset, folder / "one", 8)[0]


@pytest.fixture(scope="module")
def zoo(folder):
    return make_zoo(folder / "zoo")


@pytest.fixture(scope="module")
def tasks(folder):
    return make_tasks(folder / "tasks").folder


@pytest.fixture(scope="module")
def two(one, dataset, folder, zoo, tasks):
    shutil.copytree(folder / "one", folder / "copy")
    script = Path(__file__).parents[1] / "two_processes.py"
    code, out = launch_two(script, dataset, folder / "copy", folder / "two", zoo, tasks)
    assert code == 0, out
    return json.loads((folder / "two" / "results.json").read_text())


@pytest.fixture(scope="module")
def chosen_by_one(dataset, folder):
    return chosen(dataset, folder / "alone" / "chosen", 8)


@pytest.fixture(scope="module")
def told_by_one(tasks, folder):
    return chosen(tasks, folder / "alone" / "conditions" / "told", 8)


def assert_same_curve(found, expected):
    for entry, other in zip(found, expected, strict=True):
        assert entry["step"] == other["step"] and entry["lr"] == other["lr"]
        assert entry["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.parametrize("name", ["same", "accumulated", "resumed", "sharded", "sharded_resumed"])
def test_same_global_batch_gives_the_same_losses_and_learning_rates(one, two, name):
    """Learning rates are those of optimiser steps, however many processes and accumulation steps make one."""
    for log, _ in two[name]:
        assert_same_curve(log, one)


@pytest.mark.parametrize("name", ["same", "accumulated", "resumed", "sharded", "sharded_resumed"])
def test_processes_end_with_the_same_bits(two, name):
    (_, first), (_, second) = two[name]
    assert first == second


def test_no_row_is_seen_twice_in_an_epoch(two):
    """20 rows, 5 steps of 2 rows on each of 2 processes."""
    rows = [row for (seen,) in two["epoch"] for row in seen]
    assert sorted(rows) == list(range(20))


def test_one_process_goes_on_where_two_were(one, two, dataset, folder):
    for stage in ("ae", "p"):
        assert (folder / "two" / "begun" / stage / "checkpoint-10").is_dir()
    assert_same_curve(stages(dataset, folder / "two" / "begun", 8, "latest")[0], one)


def test_a_resumed_sharded_run_has_the_bits_of_an_uninterrupted_one(two):
    assert two["sharded_resumed"][0][1] == two["sharded"][0][1]


@pytest.mark.parametrize("run", ["same", "sharded"])
def test_saved_weights_are_those_of_one_process(two, folder, run):
    for name in ("ae", "p/unet"):
        file = "diffusion_pytorch_model.safetensors"
        expected, found = (load_file(folder / part / name / file) for part in ("one", f"two/{run}"))
        assert found.keys() == expected.keys()
        for key in expected:
            # Sums of gradients in another order.
            torch.testing.assert_close(found[key], expected[key], atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["functional", "functional_accumulated", "functional_resumed", "functional_sharded"])
def test_functions_are_learned_alike(two, zoo, folder, name):
    expected, _, report = functional(zoo, folder / name, 8)
    (log, first, found), (_, second, _) = two[name]
    assert_same_curve(log, expected)
    assert first == second
    assert found["explained_variance"] == pytest.approx(report["explained_variance"], abs=1e-3)


def test_functions_resumed_have_the_bits_of_an_uninterrupted_run(two):
    assert two["functional_resumed"][0][1] == two["functional"][0][1]


@pytest.mark.parametrize(
    "name", ["chosen", "chosen_resumed", "chosen_sharded", "chosen_sharded_resumed", "told", "told_sharded"]
)
def test_the_same_step_is_chosen(two, chosen_by_one, told_by_one, name):
    expected, _ = told_by_one if name.startswith("told") else chosen_by_one
    for record, _ in two[name]:
        assert record["kept_step"] == expected["kept_step"]
        assert record["curve"].keys() == expected["curve"].keys() and len(record["curve"]) == 11
        for step, loss in expected["curve"].items():
            assert record["curve"][step] == pytest.approx(loss, abs=1e-5)
        found, other = record["held_out"]["between"], expected["held_out"]["between"]
        assert found["loss"] == pytest.approx(other["loss"], abs=1e-5)
    (_, first), (_, second) = two[name]
    assert first == second


@pytest.mark.parametrize("name", ["chosen", "chosen_sharded"])
def test_a_resumed_choice_has_the_bits_of_an_uninterrupted_one(two, name):
    assert two[f"{name}_resumed"][0][1] == two[name][0][1]


def test_the_norm_of_a_sharded_gradient_is_that_of_the_whole(two, dataset, folder):
    log, _ = stages(dataset, folder / "clipped", 8, max_grad_norm=1e-3)
    assert_same_curve(two["sharded_clipped"][0][0], log)


def test_another_fsdp_config_is_one_line(two):
    (problem,), _ = two["wrapped"]
    assert "expected fsdp_version: 2 and fsdp_auto_wrap_policy: NO_WRAP" in problem and "\n" not in problem


def test_a_loss_that_is_not_finite_on_one_process_stops_both(two):
    (first, second) = two["nan"]
    assert first == second
    assert "loss is nan at step 4" in first[0] and first[1] == ["checkpoint-2"]


def test_sigterm_to_one_process_stops_both_after_the_same_step(two):
    first, second = two["term"]
    assert first == second == [143, first[1]] and len(first[1]) == 1


def test_a_disk_that_is_full_for_one_process_stops_both(two):
    (first, kept), (second, _) = two["full"]
    assert "No space left" in first and "another process failed" in second
    assert kept == ["checkpoint-2"]
