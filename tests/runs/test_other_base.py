"""Whatever is put together of two networks that differ outside of the layout is refused, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.groups import Groups
from pdiff_hf.files import write_json
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.models.auto import load_autoencoder
from pdiff_hf.models.autoencoder_pca import AutoencoderPCA
from pdiff_hf.models.kinds import AutoencoderPCAConfig, UNet1DConfig
from pdiff_hf.networks import mlp3
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.pipelines.pipeline_pdiff import PDiffPipeline
from pdiff_hf.pipelines.push_generated import push_generated
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs.folder import STAGES, Run
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.runs.groups import add_own_groups
from pdiff_hf.runs.stages import check_complete_stages
from pdiff_hf.tasks.evaluators import make_gate_evaluator
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion

NETWORK = {"in_features": 64, "hidden": (8,), "num_classes": 10}
LATENTS = {"latent_channels": 4, "latent_length": 2}
PCA = AutoencoderPCAConfig(**LATENTS, allow_poor_reconstruction=True)
UNET = UNet1DConfig(steps=1, block_out_channels=(16, 16), lr_warmup_steps=0)
TASK = {"task": {"kind": "image_classification", "dataset": "digits", "val_size": 200}}


def make_run(folder, seed):
    """Random heads on a random body, and all that is made of them."""
    torch.manual_seed(seed)
    model = mlp3(**NETWORK)
    layout = ParameterLayout.from_model(model, "head")
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(model, folder / "source")
    vectors = layout.flatten(model) + 0.1 * torch.randn(20, layout.num_parameters)
    save_parameter_dataset(vectors, layout, folder / "dataset", base, metadata=TASK)
    train_autoencoder(folder / "dataset", folder / "autoencoder", PCA)
    train_diffusion(folder / "dataset", folder / "autoencoder", folder / "pipeline", UNET)
    generate_networks(load_pipeline(folder / "pipeline"), folder / "generated", 3, 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in the body only, not to be written into."""
    folder = tmp_path_factory.mktemp("other-base")
    for seed in (0, 1):
        make_run(folder / f"h{seed}", seed)
    return folder


@pytest.fixture
def inside(runs, monkeypatch):
    """In their folder, where they have short names; what is there stays as it is."""
    monkeypatch.chdir(runs)
    before = sorted(runs.rglob("*"))
    yield runs
    assert sorted(runs.rglob("*")) == before


def refused(first, second, advice):
    names = f"{first} and {second} belong to different networks: "
    # Of generated networks, the weights are those of their pipeline, as long as it is there.
    return rf"{names}(tensor '1\.(weight|bias)' of the base model|the weights of the base model) .*; {advice}"


DATASET = "give the dataset the pipeline was trained on"


def test_each_says_which_network_it_is_of(runs):
    index = json.loads((runs / "h0" / "generated" / "index.json").read_text())
    layout = json.loads((runs / "h0" / "dataset" / "layout.json").read_text())
    assert (index["layout"], index["base_model"]) == (layout["fingerprint"], layout["base_model"])
    assert index["pipeline"] == "../pipeline"
    for folder in ("autoencoder", "pipeline/autoencoder"):
        config = json.loads((runs / "h0" / folder / "config.json").read_text())
        assert config["layout"]["base_model"] == index["base_model"] and config["layout"]["rest"] == index["rest"]


def test_training_of_another_network(inside, tmp_path):
    first, other = ParameterDataset("h0/dataset"), ParameterDataset("h1/dataset")
    with pytest.raises(ValueError, match=refused("h0/dataset", "h1/autoencoder", "give the dataset the autoencoder")):
        train_diffusion(first, "h1/autoencoder", tmp_path / "out", UNET)
    with pytest.raises(ValueError, match=refused("h0/dataset", "h1/dataset", "make the evaluator of the dataset's")):
        train_autoencoder(first, tmp_path / "out", PCA, make_gate_evaluator(other))
    model = other.base_model.build()
    whole = ParameterEvaluator(model, ParameterLayout.from_model(model), torch.rand(4, 1, 8, 8), torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"the evaluator .*: tensor '1.weight' is generated in the evaluator and not"):
        train_autoencoder(first, tmp_path / "out", PCA, whole)
    assert not (tmp_path / "out").exists()


def test_generation_with_the_dataset_of_another(inside, tmp_path, pdiff):
    out = tmp_path / "out"
    code, _, err = pdiff("generate", "h0/pipeline", "--out", out, "--choose", "val", "--dataset", "h1/dataset")
    assert code == 2 and err.count("\n") == 1
    assert "Error: h1/dataset and h0/pipeline belong to different networks: tensor '1.bias' of the base model" in err
    with pytest.raises(ValueError, match=refused("h1/dataset", "h0/pipeline", DATASET)):
        options = {"sampler": "gaussian_latents", "dataset": ParameterDataset("h1/dataset")}
        generate_networks(load_pipeline("h0/pipeline"), out, 2, **options)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["h0", "--dataset", "h1/dataset"], "h1/dataset and h0/pipeline"),
        (["h0", "--pipeline", "h1/pipeline"], "h0/dataset and h1/pipeline"),
        (["h0", "--generated", "h1/generated"], "h0/dataset and h1/generated"),
    ],
)
def test_evaluation_of_another(inside, tmp_path, pdiff, options, message):
    code, _, err = pdiff("evaluate", *options, "--out", tmp_path / "out")
    assert code == 2 and f"Error: {message} belong to different networks: tensor '1.bias' of the base model" in err
    assert not (tmp_path / "out").exists()


def test_run_whose_dataset_was_replaced(inside, tmp_path, pdiff, monkeypatch):
    shutil.copytree("h0", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "dataset")
    shutil.copytree("h1/dataset", tmp_path / "run" / "dataset")
    monkeypatch.chdir(tmp_path)
    for command in ("evaluate", "trajectory"):
        code, _, err = pdiff(command, "run")
        assert code == 2 and "Error: run/dataset and run/pipeline belong to different networks" in err
    assert not (tmp_path / "run" / "report").exists()


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion", "generate"])
def test_stages_that_are_complete_are_not_taken_for_those_of_another(inside, tmp_path, stage):
    """Nor skipped: a run is begun again with another dataset."""
    run = Run(tmp_path / "run")
    shutil.copytree(Path("h1") / STAGES[stage], run.path(stage))
    run.note(stage, {"seconds": 1})
    with pytest.raises(ValueError, match=refused("h0/dataset", run.path(stage), "give the dataset that it was made")):
        check_complete_stages(run, ParameterDataset("h0/dataset"))
    check_complete_stages(run, ParameterDataset("h1/dataset"))


def test_further_groups_of_another(inside, tmp_path):
    shutil.copytree("h1/generated", tmp_path / "fine_tuned")
    write_json(
        tmp_path / "run.json", {"stages": {s: {"seconds": 1} for s in ("autoencoder", "diffusion", "fine_tune")}}
    )
    normalizer, dataset = load_autoencoder("h0/autoencoder").normalizer, ParameterDataset("h0/dataset")
    groups = Groups(dataset.vectors(), dataset.vectors(), dataset.layout)
    with pytest.raises(ValueError, match=refused("h0/dataset", tmp_path / "fine_tuned", "remove them")):
        add_own_groups(Run(tmp_path), dataset, groups, {}, normalizer)


def test_generated_networks_of_another(inside):
    dataset = ParameterDataset("h0/dataset")
    with pytest.raises(ValueError, match=refused("h1/generated", "what they are read for", "read them with")):
        load_generated("h1/generated", dataset.layout, dataset.base_model)
    assert len(load_generated("h1/generated", dataset.layout)) == 3
    for source in ("h0/pipeline", "h0/dataset"):
        with pytest.raises(ValueError, match=refused("h1/generated", source, "give the pipeline that they came from")):
            push_generated("h1/generated", "user/net", source, index=0)


def test_pipeline_that_networks_came_from_is_found_or_named_as_it_was_typed(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "h0" / "generated", "mine/best")
    message = "^expected the pipeline that mine/best came from at mine/pipeline, found none; name it as the source"
    with pytest.raises(ValueError, match=message):
        push_generated("mine/best", "user/net", index=0)
    shutil.copytree(runs / "h1" / "pipeline", "mine/pipeline")
    with pytest.raises(ValueError, match=refused("mine/best", "mine/pipeline", "give the pipeline that they came")):
        push_generated("mine/best", "user/net", index=0)


def test_pipeline_of_parts_of_another(inside):
    autoencoder = load_autoencoder("h1/autoencoder")
    pipeline = PDiffPipeline.from_pretrained("h0/pipeline")
    advice = "give the autoencoder that the pipeline was trained with"
    with pytest.raises(ValueError, match=refused("h1/autoencoder", "h0/pipeline", advice)):
        PDiffPipeline.from_pretrained("h0/pipeline", autoencoder=autoencoder)
    with pytest.raises(ValueError, match=refused("h0/pipeline/autoencoder", "the base model", advice)):
        pipeline.base_model = ParameterDataset("h1/dataset").base_model
    assert pipeline.base_model.sha256 == ParameterDataset("h0/dataset").base_model.sha256
    larger = AutoencoderPCA(layout=pipeline.layout.to_dict(), latent_channels=8, latent_length=2)
    with pytest.raises(ValueError, match=r"the unet is for latents \(4, 2\), the autoencoder gives \(8, 2\)"):
        PDiffPipeline(larger, pipeline.unet, pipeline.scheduler)


def test_folders_of_version_0_1_are_read(runs, tmp_path, recwarn):
    """They name no base model but in the dataset and the pipeline."""
    for name in ("dataset", "autoencoder", "pipeline", "generated"):
        shutil.copytree(runs / "h0" / name, tmp_path / name)
    for file in ("autoencoder/config.json", "pipeline/autoencoder/config.json", "generated/index.json"):
        values = json.loads((tmp_path / file).read_text())
        for entry in (values, values["layout"]):
            for key in ("base_model", "rest", "pipeline"):
                if isinstance(entry, dict):
                    entry.pop(key, None)
        (tmp_path / file).write_text(json.dumps(values))
    dataset = ParameterDataset(tmp_path / "dataset")
    generate_networks(load_pipeline(tmp_path / "pipeline"), tmp_path / "new", 2, 2, dataset=dataset)
    assert not [w for w in recwarn if "cannot be checked" in str(w.message)]
    with pytest.warns(UserWarning, match=r"generated and what .* cannot be checked: \S+generated has no base model"):
        load_generated(tmp_path / "generated", dataset.layout, dataset.base_model)
    with pytest.warns(UserWarning, match="autoencoder has no base model"):
        train_diffusion(dataset, tmp_path / "autoencoder", tmp_path / "again", UNET)
