import json
import shutil

import pytest
import torch

from factories import TINY_RUN
from pdiff_hf.data.dataset import dataset_vectors, load_base_model, load_parameter_dataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.data.writer import copy_first_rows
from pdiff_hf.files import read_json
from pdiff_hf.models.auto import AUTOENCODER
from pdiff_hf.models.unet_1d import UNet1DConfig
from pdiff_hf.pipelines.network_folder import write_networks
from pdiff_hf.runs.audit import audit, audit_recipe
from pdiff_hf.runs.audit_tables import audit_tables
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import collect

TINY = [override for override in TINY_RUN if override.split(".")[0] in ("autoencoder", "diffusion", "generate")]
GROUPS = {"original", "generated", "unseen", "average_16", "noise_0.05", "noise_0.1"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "dataset"
    collect(load_recipe("digits-mlp", [*TINY_RUN, "collect.num_checkpoints=20"]), folder)
    return folder


@pytest.fixture(scope="module")
def audited(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    return folder, audit(audit_recipe(dataset, TINY), [20, 8, 8], folder)


def test_every_number_of_checkpoints_is_a_run_of_the_first_rows(dataset, audited):
    folder, found = audited
    assert [row["num_checkpoints"] for row in found["rows"]] == [8, 20]
    everything = dataset_vectors(*load_parameter_dataset(dataset))
    for count in (8, 20):
        used = dataset_vectors(*load_parameter_dataset(folder / f"K-{count:04d}" / "dataset"))
        assert torch.equal(used, everything[:count])
        assert (folder / f"K-{count:04d}" / "report" / "report.html").is_file()


def test_rows_are_what_the_reports_say(audited):
    folder, found = audited
    for row in found["rows"]:
        report = folder / f"K-{row['num_checkpoints']:04d}" / "report"
        groups = read_json(report / "metrics.json")["groups"]
        assert set(row["groups"]) == set(groups) == (GROUPS if row["num_checkpoints"] == 8 else GROUPS - {"unseen"})
        yardstick = groups["original"]["similarity"]["l2_nearest_mean"]
        assert row["groups"]["original"]["distance"]["mean"] == pytest.approx(1)
        for name, group in row["groups"].items():
            similarity = groups[name]["similarity"]
            assert group["iou_max"]["mean"] == similarity["iou_max_mean"]
            assert group["distance"]["mean"] * yardstick == pytest.approx(similarity["l2_nearest_mean"])
            assert group["novel_and_performant"]["share"] == groups[name]["novel_and_performant"]["joint"]["1x"]
        # 7 and 18 rows are left for training: 6 latent values at most, and 8 as the recipe has it.
        assert row["latent_shape"] == ([3, 2] if row["num_checkpoints"] == 8 else [4, 2])
    assert found["num_test"] == 500 and found["dataset"] == "digits"


def test_files_tell_it_to_people_and_programs(audited):
    folder, found = audited
    assert json.loads((folder / "audit.json").read_text()) == found
    text = (folder / "audit.md").read_text(encoding="utf-8")
    assert (folder / "audit.png").stat().st_size > 10_000 and "](audit.png)" in text
    for table in audit_tables(found):
        assert all("| " + " | ".join(row) + " |" in text for row in table.rows)
    assert str(folder) not in text


def test_complete_audit_is_not_done_again(dataset, audited):
    folder, found = audited
    before = {path: path.stat().st_mtime_ns for path in folder.glob("K-*/**/*") if path.is_file()}
    said = []
    assert audit(audit_recipe(dataset, TINY), [8, 20], folder, report=said.append) == found
    assert len(said) == 2 * 5 and all("complete, skipped" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_missing_is_made_and_memorisation_is_seen(dataset, audited, tmp_path):
    """Networks that copy the originals, in place of the generated ones."""
    folder = tmp_path / "audit"
    shutil.copytree(audited[0] / "K-0008", folder / "K-0008")
    run, (rows, layout) = folder / "K-0008", load_parameter_dataset(dataset)
    index = read_json(run / "generated" / "index.json")
    for name in ("generated", "report"):
        shutil.rmtree(run / name)
    copies = dataset_vectors(rows, layout)[:5]
    write_networks(run / "generated", layout, map(layout.unflatten, copies), {"seed": index["seed"]})
    group = audit(audit_recipe(dataset, TINY), [8], folder)["rows"][0]["groups"]["generated"]
    assert group["copied"] == 1 and group["novel"] == 0 and group["distance"]["mean"] == 0
    assert group["iou_max"]["mean"] == 1


@pytest.mark.parametrize(
    ("counts", "overrides", "message"),
    [
        ([8, 21], [], r"expected numbers of checkpoints up to 20, found \[8, 21\]"),
        ([4], [], "expected at least 6 checkpoints for autoencoder.holdout_every=10, found 4"),
        ([2, 8], [], "expected checkpoints for at least 2 latent values, 3 without those held out, found 2 of 2"),
        ([8], ["diffusion.steps=30"], "holds another run: its diffusion.steps is 20, expected 30"),
    ],
)
def test_impossible_audits_are_refused_before_anything_is_trained(dataset, audited, counts, overrides, message):
    before = sorted(audited[0].iterdir())
    with pytest.raises(ValueError, match=message):
        audit(audit_recipe(dataset, [*TINY, *overrides]), counts, audited[0])
    assert sorted(audited[0].iterdir()) == before


def test_command_takes_several_numbers(pdiff, dataset, audited, tmp_path):
    sets = [argument for override in TINY for argument in ("--set", override)]
    code, out, err = pdiff("audit", dataset, "--num-checkpoints", 8, 20, "--out", audited[0], *sets, "--json")
    assert code == 0, err
    assert json.loads(out) == audited[1] and "K = 8, collect: complete" in err
    code, _, err = pdiff("audit", tmp_path, "--num-checkpoints", 8, "--out", tmp_path / "audit")
    assert code == 2 and "expected a parameter dataset at" in err


@pytest.mark.parametrize(
    ("num_rows", "latents", "options", "expected"),
    [
        (300, (32, 4), {}, (32, 4)),
        (10, (32, 4), {}, (2, 4)),
        (6, (32, 4), {}, (1, 4)),
        (4, (32, 4), {}, (1, 2)),
        (50, (1, 128), {}, (1, 44)),
        (50, (1, 128), {"kind": "pca"}, (1, 44)),
        (10, (1, 128), {"preset": "paper"}, (1, 128)),
    ],
)
def test_latents_are_as_many_as_the_checkpoints_allow(num_rows, latents, options, expected):
    config = AUTOENCODER.validate({"latent_channels": latents[0], "latent_length": latents[1], **options})
    found = config.fit_latents(UNet1DConfig(), len(split_rows(num_rows, config.holdout_every)[0]))
    assert (found.latent_channels, found.latent_length) == expected


def test_first_rows_keep_base_model_and_metrics(dataset, tmp_path):
    copy_first_rows(dataset, tmp_path / "first", 3)
    rows, layout = load_parameter_dataset(tmp_path / "first")
    expected, _ = load_parameter_dataset(dataset)
    assert torch.equal(dataset_vectors(rows, layout), dataset_vectors(expected, layout)[:3])
    for name in ("run", "step", "val_accuracy", "test_accuracy", "train_loss"):
        assert list(rows[name]) == list(expected[name])[:3]
    assert load_base_model(tmp_path / "first").sha256 == load_base_model(dataset).sha256
    assert read_json(tmp_path / "first" / "stats.json")["metadata"]["first_rows"] == 3
    with pytest.raises(ValueError, match=r"expected 1 to 20 rows of .*, found 21"):
        copy_first_rows(dataset, tmp_path / "more", 21)
    with pytest.raises(ValueError, match="exists already"):
        copy_first_rows(dataset, tmp_path / "first", 2)
