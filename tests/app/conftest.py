import json

import pytest
import torch

from pdiff_hf.app.lab import Lab, Request
from pdiff_hf.app.sources import open_source
from pdiff_hf.runs.recipe import load_recipe

SUBSETS = ["collect.seen=6", "collect.validation=1", "collect.unseen=1", "generate.num_samples=1"]


@pytest.fixture(scope="session")
def subsets_run(shared_folder):
    """Dataset and pipeline of networks for subsets of the digits, not to be written into."""
    from pdiff_hf.data.dataset import ParameterDataset
    from pdiff_hf.runs.stages import collect, train_stages

    def make(folder):
        recipe = load_recipe("digits-subsets", SUBSETS, profile="cpu-smoke")
        collect(recipe, folder / "dataset")
        train_stages(recipe, ParameterDataset(folder / "dataset"), folder, lambda line: None)

    return shared_folder("subsets-run", make)


@pytest.fixture(scope="session")
def lab(tiny_run):
    return Lab(open_source(str(tiny_run)))


@pytest.fixture(scope="session")
def drawn(lab):
    return lab.draw(Request(num_samples=6, num_inference_steps=3))


@pytest.fixture(scope="session")
def subsets_lab(subsets_run):
    return Lab(open_source(str(subsets_run)))


def asked(**options):
    """A request of few steps, with a condition as JSON."""
    told = options.pop("condition", None)
    condition = None if told is None else json.dumps(told)
    return Request(condition, **{"num_samples": 5, "num_inference_steps": 2, **options})


@pytest.fixture
def ask():
    return asked


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
