import copy

import pytest
from huggingface_hub import ModelCard

from artefacts import METRICS, check_golden
from factories import NETWORK, make_layout
from pdiff_hf import BaseModel
from pdiff_hf.pipelines.generated_card import make_generated_card
from pdiff_hf.results.metrics import Metrics

BASE = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
SELECTION = {"num_drawn": 1000, "num_val": 50, "val_accuracy": [0.9, 0.8, 0.7]}
INDEX = {"schema": 1, "seed": 0, "scheduler": "ddim", "files": [f"0000{row}.safetensors" for row in range(3)]}
SELECTED = {**INDEX, "choice": SELECTION}


def make(index=SELECTED, base_model=BASE, **options):
    return make_generated_card("user/net", index, make_layout(), base_model, **options)


def test_network_and_zoo_have_the_golden_cards():
    row = METRICS["groups"]["generated"]["selected"]["index"]
    index = {**SELECTED, "choice": {**SELECTION, "val_accuracy": [0.9] * (row + 1)}}
    check_golden("generated_card.md", make(index, row=row, pipeline="user/pipe", metrics=Metrics.from_dict(METRICS)))
    check_golden("zoo_card.md", make(INDEX, metrics=Metrics.from_dict(METRICS)))


@pytest.mark.parametrize(
    ("base_model", "library", "line"),
    [
        (BaseModel.timm("resnet18", num_classes=10), "timm", 'timm.create_model("hf_hub:user/net", pretrained=True)'),
        (
            BaseModel("transformers", "ViTForImageClassification", {"config": {"model_type": "vit"}}),
            "transformers",
            'ViTForImageClassification.from_pretrained("user/net")',
        ),
        (BASE, "pdiff-hf", 'load_base_model(snapshot_download("user/net")).build()'),
        (BaseModel.imported("mine.nets:small"), "pdiff-hf", '.build(trusted_imports=["mine.nets:small"])'),
    ],
)
def test_snippet_is_that_of_the_library(base_model, library, line):
    text = make(base_model=base_model, row=0)
    assert line in text.partition("```python\n")[2].partition("```")[0]
    assert ModelCard(text).data.library_name == library


def test_selection_is_told():
    assert "number 2 of 1,000 networks by accuracy on 50 validation examples, where it has 80.00%" in make(row=1)
    assert "was not chosen by its accuracy" in make(INDEX, row=1)
    assert "none was chosen" in make(INDEX) and "The best of 1,000 networks" in make()


def test_accuracy_of_another_network_is_not_claimed():
    metrics = copy.deepcopy(METRICS)
    metrics["groups"]["generated"]["selected"]["index"] = 1
    own, other = (ModelCard(make(row=row, metrics=Metrics.from_dict(metrics))) for row in (1, 0))
    assert len(own.data.eval_results) == 1 and "This network: " in own.text
    assert not other.data.eval_results and "This network alone: not reported" in other.text
    assert "This network" not in make(metrics=Metrics.from_dict(metrics))


def test_without_metrics_it_says_not_evaluated():
    text = make(row=0)
    assert "Not evaluated: nothing is known" in text and "model-index" not in text


def test_pipeline_is_named_only_when_it_is_on_the_hub(tmp_path):
    assert "[user/pipe](https://huggingface.co/user/pipe)" in make(pipeline="user/pipe")
    assert str(tmp_path) not in make(pipeline=str(tmp_path)) and "The pipeline is" not in make(pipeline=str(tmp_path))
