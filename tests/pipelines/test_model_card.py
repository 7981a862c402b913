import copy
import json

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from artefacts import METRICS, check_golden, save_pipeline
from factories import NETWORK
from pdiff_hf import BaseModel
from pdiff_hf.evaluation.summary import aggregate_seeds
from pdiff_hf.hub.card_text import REPO_ID
from pdiff_hf.pipelines.card import write_pipeline_card
from pdiff_hf.results.metrics import Metrics
from small_results import evaluate


@pytest.fixture
def folder(tmp_path):
    return save_pipeline(tmp_path)


def snippet(text):
    return text.partition("```python\n")[2].partition("```")[0]


def test_evaluated_pipeline_has_the_golden_card(folder):
    for name in ("accuracy_similarity", "loss_curves"):
        (folder / f"{name}.png").write_bytes(b"")
    check_golden("model_card.md", write_pipeline_card(folder, Metrics.from_dict(METRICS)).read_text(encoding="utf-8"))


def test_metadata_are_valid_and_hold_the_results(folder):
    path = write_pipeline_card(folder, Metrics.from_dict(METRICS))
    data = ModelCard.load(path).data
    generated = METRICS["groups"]["generated"]
    mean, selected = data.eval_results
    assert mean.metric_value == pytest.approx(generated["test_accuracy"]["mean"], abs=1e-6)
    assert selected.metric_value == pytest.approx(generated["selected"]["test_accuracy"], abs=1e-6)
    assert {result.dataset_type for result in data.eval_results} == {"somebody/tiny-images"}
    assert {result.task_type for result in data.eval_results} == {"image-classification"}
    metadata = metadata_load(path)
    assert metadata["library_name"] == "diffusers" and metadata["datasets"] == ["somebody/tiny-images"]
    assert "base_model" not in metadata and "license" not in metadata


def test_first_snippet_of_the_card_runs(folder):
    text = write_pipeline_card(folder).read_text(encoding="utf-8")
    names = {}
    exec(snippet(text).replace(REPO_ID, str(folder)).replace("batch_size=10", "batch_size=2"), names)
    assert names["model"](torch.ones(1, 1, 2, 2)).shape == (1, 3)
    assert set(names["out"].parameters[0]) == set(names["pipe"].layout.names)


def test_base_model_of_another_module_is_trusted_by_name(tmp_path):
    folder = save_pipeline(tmp_path, BaseModel.imported("mine.nets:small", **NETWORK))
    text = write_pipeline_card(folder).read_text(encoding="utf-8")
    assert 'pipe.build_model(out.parameters[0], trusted_imports=["mine.nets:small"])' in snippet(text)


def test_without_metrics_it_says_not_evaluated(folder):
    (folder / "accuracy_similarity.png").write_bytes(b"")
    path = write_pipeline_card(folder)
    text = path.read_text(encoding="utf-8")
    assert "Not evaluated: nothing is known" in text and "It was not evaluated." in text
    assert "model-index" not in text and ".png" not in text and "| generated |" not in text


def test_figures_and_metrics_of_the_report_are_put_beside_the_card(folder, tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    (report / "metrics.json").write_text(json.dumps(METRICS))
    (report / "ensembles.png").write_bytes(b"png")
    text = write_pipeline_card(folder, Metrics.from_dict(METRICS), report).read_text(encoding="utf-8")
    assert "(ensembles.png)" in text and "accuracy_similarity.png" not in text
    assert (folder / "ensembles.png").read_bytes() == b"png"
    assert json.loads((folder / "metrics.json").read_text()) == METRICS


def test_every_group_of_a_new_evaluation_is_in_the_table(folder):
    found = evaluate().metrics
    text = write_pipeline_card(folder, found).read_text(encoding="utf-8")
    metrics = found.to_dict()
    for name, group in metrics["groups"].items():
        low, high = group["test_accuracy"]["ci95"]
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        mean = f"{100 * group['test_accuracy']['mean']:.2f} ({100 * low:.2f}–{100 * high:.2f})"
        assert row.startswith(f"| {name} | {group['n']} | {mean} |"), row
    assert metrics["verdict"] in text and "minus that of\n\n- averages of 16 originals: " in text
    # Without the name of a dataset there is no result for a model-index.
    assert "model-index" not in metadata_load(folder / "README.md")


def test_several_seeds_have_a_card(folder):
    runs = {seed: copy.deepcopy(METRICS) for seed in (3, 5)}
    runs[5]["groups"]["generated"]["test_accuracy"]["mean"] += 0.02
    metrics = aggregate_seeds({seed: Metrics.from_dict(run) for seed, run in runs.items()})
    text = write_pipeline_card(folder, metrics).read_text(encoding="utf-8")
    mean = METRICS["groups"]["generated"]["test_accuracy"]["mean"] + 0.01
    assert f"| generated | 5 | {100 * mean:.2f} (" in text
    assert "reported together: 3, 5" in text and "Student's t over the seeds, so it is wide" in text
    assert len(ModelCard.load(folder / "README.md").data.eval_results) == 2


@pytest.mark.parametrize("only", ["means", "no generated", "no originals"])
def test_card_of_less_than_everything(folder, only):
    metrics = copy.deepcopy(METRICS)
    if only == "means":
        accuracy = {name: {"mean": group["test_accuracy"]["mean"]} for name, group in metrics["groups"].items()}
        groups = {name: {"n": 3, "test_accuracy": values} for name, values in accuracy.items()}
        metrics = {"groups": groups, "verdict": "So so.", "num_test": 4}
    else:
        del metrics["groups"][{"no generated": "generated", "no originals": "original"}[only]]
    text = write_pipeline_card(folder, Metrics.from_dict(metrics)).read_text(encoding="utf-8")
    assert "| average_16 |" in text and metrics["verdict"] in text and "None" not in text
    ModelCard.load(folder / "README.md")


def test_base_model_is_named_in_metadata_only_when_it_is_on_the_hub(folder):
    index = json.loads((folder / "model_index.json").read_text())
    known = {"kwargs": {}, "weights": "model.safetensors", "sha256": "0" * 64}

    def metadata(**base_model):
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "model_index.json").write_text(json.dumps({**index, "base_model": {**known, **base_model}}))
        return metadata_load(write_pipeline_card(folder)).get("base_model")

    assert metadata(library="timm", name="resnet18") is None
    pretrained = {"pretrained": True}
    assert metadata(library="timm", name="resnet18", kwargs=pretrained) == "timm/resnet18.a1_in1k"
    pinned = {"repo": "somebody/net", "revision": "0123456789" * 4}
    assert metadata(library="timm", name="resnet18", **pinned) == "somebody/net"
    assert f"at `{pinned['revision']}`" in (folder / "README.md").read_text(encoding="utf-8")


def test_what_others_named_is_shown_as_text(folder):
    name = "net|](x)\n# <script>alert(1)</script> `<!-- pdiff:end usage -->\n---\n```"
    index = json.loads((folder / "model_index.json").read_text())
    index["base_model"]["name"] = name
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "train_config.json").write_text(json.dumps({"```\n<!-- pdiff:begin x -->": name}))
    metrics = copy.deepcopy(METRICS)
    metrics["groups"]["a|b\n<b>"] = metrics["groups"]["average_16"]
    metrics["task"]["dataset"] = "a: b\n---\n# <img src=x>"
    metrics["verdict"] = "Fine\n\n<h1>really</h1>"
    path = write_pipeline_card(folder, Metrics.from_dict(metrics))
    text = path.read_text(encoding="utf-8")
    before = path.read_bytes()
    assert ModelCard.load(path).data.eval_results[0].dataset_name == "a: b --- # <img src=x>"
    body = text.partition("\n---\n")[2]
    assert not any(tag in body for tag in ("<script", "<b>", "<h1>", "<img"))
    rows = [line.replace("\\|", "") for line in body.splitlines() if line.startswith("| ")]
    assert len({row.count("|") for row in rows}) == 1 and any(row.startswith("| ab") for row in rows)
    assert body.count("<!-- pdiff:begin ") == body.count("<!-- pdiff:end ") == 4
    assert body.count("\n```") == 6
    write_pipeline_card(folder, Metrics.from_dict(metrics))
    assert path.read_bytes() == before
