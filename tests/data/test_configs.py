import pytest
import torch
from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import DatasetCard
from torch import nn

from pdiff_hf.data.dataset import dataset_vectors, load_parameter_dataset
from pdiff_hf.data.hub import dataset_configs, write_configs
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.layout import ParameterLayout
from small_datasets import LAYOUT, make_vectors, snapshot

OTHER = ParameterLayout.from_model(nn.Linear(2, 3))
OTHER_VECTORS = torch.arange(18.0).reshape(2, 9)


@pytest.fixture
def folder(tmp_path):
    """The default dataset, and one of another layout as a config."""
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds")
    save_parameter_dataset(OTHER_VECTORS, OTHER, tmp_path / "ds" / "linear")
    write_configs(tmp_path / "ds")
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


def test_plain_datasets_knows_the_configs(folder, tmp_path):
    assert get_dataset_config_names(str(folder)) == ["default", "linear"]
    cache = str(tmp_path / "cache")
    linear = load_dataset(str(folder), "linear", split="train", cache_dir=cache).with_format("torch")
    assert torch.equal(linear[:]["parameters"], OTHER_VECTORS)
    default = load_dataset(str(folder), split="train", cache_dir=cache).with_format("torch")
    assert torch.equal(default[:]["parameters"], make_vectors())


def test_configs_without_a_default(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        save_parameter_dataset(make_vectors(seed=seed), LAYOUT, tmp_path / "ds" / name)
    write_configs(tmp_path / "ds")
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


def test_card_text_and_metadata_are_kept(folder):
    text = "---\nlicense: mit\nconfigs:\n- config_name: gone\n  data_files: gone/*\n---\n# Mine\n"
    (folder / "README.md").write_text(text)
    write_configs(folder)
    card = DatasetCard.load(folder / "README.md")
    assert card.text.strip() == "# Mine" and card.data.license == "mit"
    assert card.data.configs == [
        {"config_name": "default", "data_files": "data/train-*.parquet"},
        {"config_name": "linear", "data_files": "linear/data/train-*.parquet"},
    ]


def test_configs_of_a_folder_without_datasets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected parameter datasets, found none"):
        write_configs(tmp_path)
    assert snapshot(tmp_path) == {}


def test_folder_has_no_revision(folder):
    with pytest.raises(ValueError, match="is no dataset on the Hub: expected no revision, found 'v1'"):
        load_parameter_dataset(folder, revision="v1")
