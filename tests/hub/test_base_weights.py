"""Base models whose weights stay in a repository of their own, pinned by commit and hash."""

import pytest
import torch
from hub_client import ClientError, one_line
from safetensors.torch import save

from factories import NETWORK, make_network
from pdiff_hf import BaseModel

BASE = "user/base"

MAKE = """
from factories import NETWORK, make_pipeline
from pdiff_hf import BaseModel
from pdiff_hf.pipelines.push import push_pipeline
pipeline = make_pipeline()
base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
pipeline.base_model = base.with_hub_weights("user/base", revision)
pipeline.save_pretrained(folder)
push_pipeline(folder, "user/elsewhere")
result = pipeline.base_model.to_dict()
"""
LOAD = """
import torch
from pdiff_hf import PDiffPipeline
model = PDiffPipeline.from_pretrained("user/elsewhere").base_model.build()
result = model(torch.ones(1, 1, 2, 2)).tolist()
"""


@pytest.fixture
def weights():
    return {name: tensor.contiguous() for name, tensor in make_network(seed=7).state_dict().items()}


@pytest.fixture
def made(hub, client, weights, tmp_path):
    """A pipeline on the Hub whose base weights are in another repository there, which has moved on since."""
    client("import sys; sys.path.insert(0, tests)", tests=str(__file__).rsplit("/", 2)[0])
    hub.put(BASE, {"model.safetensors": save(weights)})
    reference = client(MAKE, folder=tmp_path / "pipeline", revision=None)
    hub.put(BASE, {"model.safetensors": save({name: 0 * tensor for name, tensor in weights.items()})})
    return tmp_path / "pipeline", reference


def test_pipeline_builds_with_the_weights_of_the_pinned_commit(made, client):
    folder, reference = made
    assert reference["repo"] == BASE and len(reference["revision"]) == 40
    assert not (folder / "base").exists()
    expected = make_network(seed=7).eval()(torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(torch.tensor(client(LOAD)), expected)


def test_other_weights_in_the_place_of_the_pinned_ones_are_refused(made, hub, client, weights):
    folder, reference = made
    other = {**reference, "sha256": "0" * 64}
    text = (folder / "model_index.json").read_text().replace(reference["sha256"], other["sha256"])
    hub.put("user/elsewhere", {"model_index.json": text.encode()})
    with pytest.raises(ClientError) as caught:
        client(LOAD)
    assert "was changed or is damaged" in one_line(caught)


def test_missing_repository_is_one_line(client, hub):
    code = "from pdiff_hf import BaseModel; BaseModel.timm('resnet18').with_hub_weights('user/none')"
    with pytest.raises(ClientError) as caught:
        client(code)
    assert "user/none" in one_line(caught)


@pytest.mark.parametrize("revision", [None, "main", "0123456"])
def test_a_commit_must_pin_the_weights(revision):
    values = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).to_dict()
    values |= {"weights": "model.safetensors", "sha256": "0" * 64, "repo": BASE, "revision": revision}
    with pytest.raises(ValueError, match="a commit of 40 digits"):
        BaseModel.from_dict(values)
