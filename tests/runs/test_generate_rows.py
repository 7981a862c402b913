"""Networks as rows of a parameter dataset."""

import json

import pytest
import torch

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs import generate_rows as rows_module
from pdiff_hf.runs.generate_rows import generate_rows
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe

SUBSETS = [["1"], ["2", "5"], ["0", "7", "9"]]


@pytest.fixture(scope="module")
def pipeline_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "run"
    run_recipe(load_recipe("digits-subsets", ["collect.unseen=0"], profile="cpu-smoke"), folder)
    return folder / "pipeline"


@pytest.fixture
def conditions(tmp_path):
    lines = [json.dumps({"classes": SUBSETS[row % 3]}) for row in range(300)]
    (tmp_path / "conditions.jsonl").write_text("\n".join(lines) + "\n\n")
    return tmp_path / "conditions.jsonl"


def test_rows_are_the_networks_that_files_are_and_know_their_conditions(pipeline_dir, conditions, pdiff, tmp_path):
    given = ("--conditions", conditions, "--num-inference-steps", "3", "--seed", "4")
    code, out, error = pdiff("generate", pipeline_dir, "--out", tmp_path / "rows", "--format", "dataset", *given)
    assert code == 0 and "300 networks" in out, error
    assert pdiff("generate", pipeline_dir, "--out", tmp_path / "files", *given)[0] == 0
    dataset = ParameterDataset(tmp_path / "rows")
    pipe = load_pipeline(pipeline_dir)
    torch.testing.assert_close(dataset.vectors()[:], load_generated(tmp_path / "files", pipe.layout)[:])
    spec = dataset.condition_spec
    assert [spec.describe(values) for values in dataset.conditions().tolist()] == 100 * SUBSETS
    # Its rows are no trajectory, and it says how it was made.
    assert dataset.metadata["generated"]["seed"] == 4 and len(dataset) == 300
    assert dataset.layout.fingerprint == pipe.layout.fingerprint


def test_without_conditions_there_is_no_column(pipeline_dir, tmp_path):
    generate_rows(load_pipeline(pipeline_dir), tmp_path / "rows", 3, 2, guidance_scale=0)
    assert ParameterDataset(tmp_path / "rows").condition_spec is None


def test_one_condition_is_that_of_all_rows(pipeline_dir, tmp_path):
    generate_rows(load_pipeline(pipeline_dir), tmp_path / "rows", 5, 2, condition={"classes": ["3"]})
    assert ParameterDataset(tmp_path / "rows").conditions().tolist() == 5 * [[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]]


def test_what_is_not_finite_leaves_nothing(pipeline_dir, tmp_path, monkeypatch):
    pipe = load_pipeline(pipeline_dir)
    monkeypatch.setattr(rows_module, "BATCH", 2)
    calls = []
    decode = pipe.autoencoder.decode_rows

    def broken(latents):
        calls.append(latents)
        return (part * (torch.nan if len(calls) > 1 else 1) for part in decode(latents))

    monkeypatch.setattr(pipe.autoencoder, "decode_rows", broken)
    with pytest.raises(ValueError, match=r"row 2: tensor .* NaN"):
        generate_rows(pipe, tmp_path / "rows", 6, 2, condition={"classes": ["3"]})
    assert not (tmp_path / "rows").exists() or not any((tmp_path / "rows").glob("data/*"))


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ('{"classes": ["1"]}\n{"classes": ["1"', (), "line 2 is no condition as JSON"),
        ('{"classes": ["1"]}\n["1"]', (), "line 2: expected a condition"),
        ("\n\n", (), "expected a condition on every line, found none"),
        ('{"classes": ["cat"]}', (), "'cat'"),
        ('{"classes": []}', (), "one class or more"),
        ('{"label": "1"}', (), "expected a condition as"),
        ('{"classes": ["1"]}', ("--num-samples", "3"), "leave out --num-samples"),
        ('{"classes": ["1"]}', ("--condition", '{"classes": ["1"]}'), "leave out --condition"),
        ('{"classes": ["1"]}', ("--choose", "val"), "leave out --format dataset"),
    ],
)
def test_a_file_that_is_wrong_is_one_line_and_leaves_nothing(pipeline_dir, pdiff, tmp_path, lines, options, message):
    (tmp_path / "c.jsonl").write_text(lines)
    given = ("--out", tmp_path / "rows", "--format", "dataset", "--conditions", tmp_path / "c.jsonl", *options)
    code, _, error = pdiff("generate", pipeline_dir, *given)
    assert code == 2 and message in error and error.strip().count("\n") == 0
    assert not (tmp_path / "rows").exists()
