import copy
import json
from pathlib import Path

import pytest

from golden_files import METRICS
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.results.records import GroupMetrics

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
ADDED = ("role", "description", "label", "color")


def without_roles(values):
    values = copy.deepcopy(values)
    for group in values["groups"].values():
        for key in ADDED:
            group.pop(key, None)
    return values


def test_file_of_0_1_is_read_and_written_with_the_same_keys_and_values(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(METRICS))
    Metrics.read(tmp_path / "old.json").write(tmp_path / "new.json")
    written = json.loads((tmp_path / "new.json").read_text())
    assert without_roles(written) == METRICS
    assert list(without_roles(written)["groups"]["generated"]) == list(METRICS["groups"]["generated"])


def test_groups_of_0_1_have_the_roles_that_they_had():
    metrics = Metrics.from_dict(METRICS)
    assert metrics.original.role == "original" and metrics.generated.role == "generated"
    assert list(metrics.rivals()) == ["average_16", "uniform_soup", "greedy_soup"]
    assert metrics.groups["noise_0.1"].role is None


def test_what_is_missing_is_none_and_is_not_written():
    metrics = Metrics.from_dict({"groups": {"mine": {"test_accuracy": {"mean": 0.5}}}})
    group = metrics.groups["mine"]
    assert group.test_accuracy.mean == 0.5 and group.test_accuracy.ci95 is None
    assert group.similarity.ci95.iou_max_mean is None and metrics.generated.selected.index is None
    assert metrics.to_dict() == {"groups": {"mine": {"test_accuracy": {"mean": 0.5}}}}


def test_keys_of_later_versions_are_kept():
    values = {"schema": 1, "later": [1, {"a": None}], "groups": {"mine": {"n": 3, "later": 2.5}}}
    assert Metrics.from_dict(values).to_dict() == values


def test_yardstick_is_that_of_independent_originals_where_it_is_known():
    similarity = {"l2_nearest_mean": 0.5, "l2_independent_mean": 2.0}
    assert Metrics.from_dict({"groups": {"original": {"similarity": similarity}}}).yardstick == 2
    assert Metrics.from_dict(METRICS).yardstick == METRICS["groups"]["original"]["similarity"]["l2_nearest_mean"]


def test_difference_to_the_gaussian_is_known_where_only_both_losses_are():
    held_out = {"between": {"loss": 0.5, "gaussian": 0.75, "difference_ci95": [-0.3, -0.2]}}
    metrics = Metrics.from_dict({"schema": 2, "denoiser": {"kept_step": 0, "validate": "block", "held_out": held_out}})
    assert metrics.denoiser.held_out["between"].difference == -0.25 and metrics.denoiser.validate_ == "block"
    assert metrics.to_dict()["denoiser"]["validate"] == "block"
    assert Metrics.from_dict(METRICS).denoiser is None and Metrics.from_dict(METRICS).distribution == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 3}, r"m.json: expected metrics of schema 1 or 2, found schema 3; update pdiff-hf to read it"),
        ([], r"m.json: expected metrics of schema 1 or 2, found list"),
        ({"groups": {"a": {"n": "many"}}}, r"m.json: groups\.a\.n\.\w+: .*, found 'many'; make it again"),
        ({"schema": 2, "denoiser": []}, r"m.json: denoiser: .* valid dictionary .*, found \[\]; make it again"),
        ({"comparisons": {"a": {"ci95": [0.1]}}}, r"m.json: comparisons\.a\.ci95: .* at least 2 .*, found \[0.1\]"),
    ],
)
def test_what_is_no_metrics_is_named(tmp_path, values, message):
    (tmp_path / "m.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        Metrics.read(tmp_path / "m.json")


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    metrics = Metrics(groups={"mine": GroupMetrics(spread=float("nan"))})
    with pytest.raises(ValueError, match="expected finite numbers"):
        metrics.write(tmp_path / "metrics.json")


def test_every_key_is_documented():
    schema = Metrics.model_json_schema()
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part["properties"]}
    assert {"schema", "groups", "iou_max_mean", "p_value", "gain_per_second", "nll"} <= keys
    for key in keys:
        assert f"{key}`" in DOCUMENT or f"`{key}." in DOCUMENT, key
