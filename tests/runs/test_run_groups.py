import warnings

import pytest
import torch
from torch import nn

from pdiff_hf import ParameterDataset
from pdiff_hf.evaluation.merging.checkpoints import SCALES
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.models.autoencoder_identity import AutoencoderIdentity
from pdiff_hf.networks import mlp3
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.runs import groups
from pdiff_hf.runs.groups import common_start, known_permutations, make_groups
from pdiff_hf.tasks.runs_config import begins_at_base


def test_a_zoo_is_told_why_its_networks_are_not_matched():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    layout = ParameterLayout.from_model(model)
    with pytest.warns(UserWarning, match=r"weight matching is left out: .*; found layer '1' \(LayerNorm\)\.$"):
        assert known_permutations(model, layout, is_zoo=True) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert known_permutations(model, layout, is_zoo=False) is None
        assert known_permutations(mlp3(), ParameterLayout.from_model(mlp3()), is_zoo=True).num_layers == 2


def test_merges_begin_where_the_trainings_of_a_recipe_did(tiny_run):
    dataset, metrics = ParameterDataset(tiny_run / "dataset"), Metrics.read(tiny_run / "report" / "metrics.json")
    start = dataset.layout.flatten(dataset.base_model.build())
    assert torch.equal(common_start(dataset, dataset.base_model.build()), start[None])
    # It is the network before the first checkpoint.
    assert not (dataset.vectors() == start).all(1).any()
    assert metrics.groups["model_stock"].n == metrics.groups["task_arithmetic"].n == 1
    assert metrics.groups["task_arithmetic"].chosen["base"] == "start"
    assert metrics.groups["task_arithmetic"].chosen["scale"] in SCALES
    assert "task_arithmetic scale" in (tiny_run / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "collect, known",
    [
        ({"kind": "trajectory", "runs": 2}, True),
        ({"kind": "trajectory", "runs": 2, "independent": True}, False),
        ({"kind": "trajectory", "runs": 1, "independent": True}, True),
        ({"kind": "runs", "runs": 2}, False),
        (None, False),
    ],
)
def test_a_start_is_known_of_trainings_that_went_on_from_the_base_model(collect, known):
    assert begins_at_base({"collect": collect}) == known
    assert not begins_at_base({"import": {}})


def test_without_peft_ties_and_dare_are_left_out_with_a_line(monkeypatch):
    pytest.importorskip("peft")
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    layout = ParameterLayout.from_model(nn.Linear(3, 2))
    autoencoder = AutoencoderIdentity(layout=layout.to_dict())
    given = (rows, rows[:2], autoencoder, lambda num, _: rows[:num], lambda own: own[:, 0], None, None, 0)
    assert {"ties", "dare"} < set(make_groups(*given))
    monkeypatch.setattr(groups, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"TIES and DARE are left out: pip install 'pdiff-hf\[adapters\]'"):
        found = set(make_groups(*given))
    assert "slerp" in found and not {"ties", "dare"} & found
