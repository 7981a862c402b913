import pytest
import torch
from torch import nn

from pdiff_hf.data.dataset import load_parameter_dataset
from pdiff_hf.data.folder import dataset_configs
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.layout import ParameterLayout
from small_datasets import LAYOUT, make_vectors

OTHER = ParameterLayout.from_model(nn.Linear(2, 3))
OTHER_VECTORS = torch.arange(18.0).reshape(2, 9)


@pytest.fixture
def folder(tmp_path):
    """The default dataset, and one of another layout as a config."""
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds")
    save_parameter_dataset(OTHER_VECTORS, OTHER, tmp_path / "ds" / "linear")
    return tmp_path / "ds"


@pytest.mark.parametrize("streaming", [False, True])
def test_each_config_is_loaded_with_its_layout(folder, streaming):
    for config, layout, vectors in (
        (None, LAYOUT, make_vectors()),
        ("default", LAYOUT, make_vectors()),
        ("linear", OTHER, OTHER_VECTORS),
    ):
        dataset, found = load_parameter_dataset(folder, config, streaming=streaming)
        assert found == layout
        assert torch.equal(torch.stack([row["parameters"] for row in dataset]), vectors)


def test_config_is_a_complete_dataset_of_its_own(folder):
    dataset, layout = load_parameter_dataset(folder / "linear")
    assert torch.equal(dataset_vectors(dataset, layout), OTHER_VECTORS)


def test_configs_without_a_default(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        save_parameter_dataset(make_vectors(seed=seed), LAYOUT, tmp_path / "ds" / name)
    assert dataset_configs(tmp_path / "ds") == ["a", "b"]
    assert torch.equal(dataset_vectors(*load_parameter_dataset(tmp_path / "ds", "b")), make_vectors(seed=1))
    with pytest.raises(ValueError, match="expected a config, one of a, b; found none"):
        load_parameter_dataset(tmp_path / "ds")


@pytest.mark.parametrize(
    "config", ["nothing", "", ".", "..", "../ds", "linear/", "linear/../linear", "/", "data", "linear\0"]
)
def test_unknown_config_is_refused_with_those_there_are(folder, config):
    with pytest.raises(ValueError, match="expected a config, one of default, linear; found "):
        load_parameter_dataset(folder, config)


def test_config_that_leaves_the_folder_is_refused(folder, tmp_path):
    save_parameter_dataset(OTHER_VECTORS, OTHER, tmp_path / "outside")
    for config in ("../outside", str(tmp_path / "outside")):
        with pytest.raises(ValueError, match="one of default, linear; found"):
            load_parameter_dataset(folder, config)


def test_folder_has_no_revision(folder):
    with pytest.raises(ValueError, match="is no dataset on the Hub: expected no revision, found 'v1'"):
        load_parameter_dataset(folder, revision="v1")
