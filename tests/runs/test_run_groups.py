import warnings

import pytest
from torch import nn

from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from pdiff_hf.runs.groups import known_permutations


def test_a_zoo_is_told_why_its_networks_are_not_matched():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    layout = ParameterLayout.from_model(model)
    with pytest.warns(UserWarning, match=r"weight matching is left out: .*; found layer '1' \(LayerNorm\)\.$"):
        assert known_permutations(model, layout, is_zoo=True) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert known_permutations(model, layout, is_zoo=False) is None
        assert known_permutations(mlp3(), ParameterLayout.from_model(mlp3()), is_zoo=True).num_layers == 2
