import json

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from pdiff_hf import AutoencoderPCA, BaseModel, ParameterLayout, PDiffPipeline, make_unet_1d
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.folder import read_layout
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.runs.evaluate import evaluate_run
from pdiff_hf.runs.folder import Run
from pdiff_hf.runs.generate import ChoiceConfig, generate_networks
from pdiff_hf.runs.recipe import EvaluateConfig
from pdiff_hf.tasks.evaluators import open_task
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig

TRUSTED = ("test_generation",)
TASK = {"dataset": "digits", "val_size": 200}
NUM_SAMPLES = 120


def norm_network(num_classes=10):
    """A network whose second BatchNorm depends on the first."""
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, num_classes))


def make_pipeline(layout, vectors):
    """A pipeline that was not trained: its networks are random combinations of the vectors."""
    torch.manual_seed(0)
    autoencoder = AutoencoderPCA(layout=layout.to_dict(), latent_channels=4, latent_length=2)
    autoencoder.fit_statistics(vectors)
    autoencoder.set_latent_statistics(autoencoder.encode(vectors).latents)
    unet = make_unet_1d(4, 2, block_out_channels=(16, 16)).eval()
    pipeline = PDiffPipeline(
        autoencoder.eval(), unet, DDPMScheduler(clip_sample=False, prediction_type="v_prediction")
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A parameter dataset on digits with both BatchNorm layers generated, and a pipeline of its layout."""
    folder = tmp_path_factory.mktemp("generation")
    torch.manual_seed(0)
    model = norm_network().train()
    images, labels = ImageClassification(ImageClassificationConfig(**TASK)).arrays("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    base = BaseModel.imported("test_generation:norm_network").save_weights(model, folder / "source")
    layout = ParameterLayout.from_model(model, "last_norms:2")
    vectors = layout.flatten(model) + 0.5 * torch.randn(20, layout.num_parameters)
    metadata = {"task": {"kind": "image_classification", **TASK}}
    save_parameter_dataset(vectors, layout, folder / "dataset", base, metadata=metadata)
    return folder / "dataset", make_pipeline(layout, vectors)


def generate(made, folder, seed=0, num_samples=NUM_SAMPLES, num_inference_steps=2, **options):
    dataset, pipeline = made
    choice = ChoiceConfig(ParameterDataset(dataset, trusted_imports=TRUSTED), **options) if options else None
    generate_networks(pipeline, folder, num_samples, num_inference_steps=num_inference_steps, seed=seed, choice=choice)
    return json.loads((folder / "index.json").read_text())


def load_into_base(dataset, file):
    _, base = read_layout(dataset)
    model = base.build(TRUSTED)
    assert model.load_state_dict(load_file(file), strict=False).unexpected_keys == []
    return model


@torch.no_grad()
def val_accuracy(dataset, file):
    images, labels = open_task(ParameterDataset(dataset)).arrays("val")
    return (load_into_base(dataset, file)(images).argmax(1) == labels).float().mean().item()


def test_all_networks_are_written_without_selection(made, tmp_path):
    index = generate(made, tmp_path / "all", num_samples=3)
    assert index["files"] == [f"0000{i}.safetensors" for i in range(3)]
    assert not {"choice", "soup", "batch_norm"} & set(index)
    assert {path.name for path in (tmp_path / "all").iterdir()} == {*index["files"], "index.json"}


def test_selected_are_the_best_of_the_same_draws(made, tmp_path):
    dataset, pipeline = made
    generate(made, tmp_path / "all")
    drawn = load_generated(tmp_path / "all", pipeline.layout)
    index = generate(made, tmp_path / "best", top=4)
    selection = index["choice"]
    assert index["files"] == [f"0000{i}.safetensors" for i in range(4)]
    assert (selection["split"], selection["num_drawn"], selection["num_val"]) == ("val", NUM_SAMPLES, 200)
    # Latents decoded in another batch: rounding of float32.
    chosen = load_generated(tmp_path / "best", pipeline.layout)
    torch.testing.assert_close(chosen, drawn[selection["draws"]], atol=1e-5, rtol=1e-5)
    model = read_layout(dataset)[1].build(TRUSTED)
    evaluator = ParameterEvaluator(model, pipeline.layout, *open_task(ParameterDataset(dataset)).arrays("val"))
    accuracies = evaluator.accuracy(drawn)
    assert accuracies.unique().numel() > 5
    assert selection["val_accuracy"][0] == pytest.approx(accuracies.max().item())
    assert selection["val_accuracy"] == pytest.approx(
        [val_accuracy(dataset, tmp_path / "best" / f) for f in index["files"]]
    )
    assert sum(rung["networks"] * rung["images"] for rung in selection["rungs"]) < NUM_SAMPLES * 200 / 2
    again = generate(made, tmp_path / "again", top=4)
    for file in index["files"]:
        assert (tmp_path / "best" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert again["choice"]["draws"] == selection["draws"]


def test_soup_is_the_mean_of_the_chosen(made, tmp_path):
    dataset, pipeline = made
    index = generate(made, tmp_path / "out", top=3, soup=True)
    assert index["soup"] == "soup.safetensors" and "soup.safetensors" not in index["files"]
    chosen = load_generated(tmp_path / "out", pipeline.layout)
    soup = pipeline.layout.flatten(load_file(tmp_path / "out" / "soup.safetensors"))
    assert len(chosen) == 3
    torch.testing.assert_close(soup, chosen.mean(0), atol=1e-6, rtol=1e-6)
    assert index["choice"]["soup_val_accuracy"] == pytest.approx(
        val_accuracy(dataset, tmp_path / "out" / "soup.safetensors")
    )


def test_batch_norm_is_re_estimated_and_stored(made, tmp_path):
    dataset, pipeline = made
    index = generate(made, tmp_path / "out", top=3, soup=True, reestimate_batch_norm=True)
    assert index["batch_norm"] == ["4.running_mean", "4.running_var", "4.num_batches_tracked"]
    selection = index["choice"]
    files = [*index["files"], "soup.safetensors"]
    found = [val_accuracy(dataset, tmp_path / "out" / file) for file in files]
    assert found == pytest.approx([*selection["val_accuracy"], selection["soup_val_accuracy"]])
    assert selection["val_accuracy_before_batch_norm"] != selection["val_accuracy"]
    chosen = load_generated(tmp_path / "out", pipeline.layout)
    assert chosen.shape == (3, pipeline.layout.num_parameters)
    images = open_task(ParameterDataset(dataset)).arrays("train")[0]
    for file in files:
        model = load_into_base(dataset, tmp_path / "out" / file)
        with torch.no_grad():
            features = model[3](model[:3](images))
        # Of the 1 097 images, 4 batches of 256 were taken: about equal, up to the others' share.
        scale = features.std((0, 2, 3))
        assert ((model[4].running_mean - features.mean((0, 2, 3))) / scale).abs().max() < 0.02
        assert (model[4].running_var.sqrt() / scale - 1).abs().max() < 0.02
        assert model[4].num_batches_tracked == 4


@pytest.mark.usefixtures("no_figures")
def test_evaluation_is_of_the_re_estimated_networks(made, tmp_path):
    dataset, pipeline = made
    generate(made, tmp_path / "generated", top=3, reestimate_batch_norm=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    folders = {name: tmp_path / name for name in ("pipeline", "generated", "report")}
    metrics = evaluate_run(
        Run(tmp_path),
        EvaluateConfig(),
        ParameterDataset(dataset, trusted_imports=TRUSTED),
        pipeline_dir=folders["pipeline"],
        generated_dir=folders["generated"],
        output_dir=folders["report"],
    ).to_dict()
    images, labels = open_task(ParameterDataset(dataset)).arrays("test")
    with torch.no_grad():
        models = [load_into_base(dataset, tmp_path / "generated" / f"0000{i}.safetensors") for i in range(3)]
        accuracies = [(model(images).argmax(1) == labels).float().mean().item() for model in models]
    found = metrics["groups"]["generated"]
    assert found["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 3)
    assert found["n"] == 3 and metrics["num_parameters"] == pipeline.layout.num_parameters
    # What its networks cost is not known here.
    assert found["cost"]["seconds"] is None and "fine_tuned" not in metrics["groups"]


def test_undeclared_tensors_are_refused(made, tmp_path):
    _, pipeline = made
    index = generate(made, tmp_path / "out", top=2, reestimate_batch_norm=True)
    assert len(load_generated(tmp_path / "out", pipeline.layout)) == 2
    state = load_file(tmp_path / "out" / "00001.safetensors")
    save_file({**state, "0.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "out" / "00001.safetensors")
    with pytest.raises(
        ValueError, match=r"00001.safetensors: tensor '0.weight' is neither in the layout nor declared"
    ):
        load_generated(tmp_path / "out", pipeline.layout)
    save_file(state, tmp_path / "out" / "00001.safetensors")
    del index["batch_norm"]
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"00000.safetensors: tensor '4.num_batches_tracked' is neither"):
        load_generated(tmp_path / "out", pipeline.layout)


def test_draws_that_are_not_finite_are_counted(made, tmp_path, monkeypatch):
    _, pipeline = made
    decode, limits = type(pipeline.autoencoder).decode, []

    def decode_some_badly(self, z, return_dict=True):
        output = decode(self, z, return_dict)
        # Of all draws, which are decoded first: the same networks are bad whenever they are decoded.
        limits.append(z[:, 0, 0].median())
        output.sample[z[:, 0, 0] > limits[0]] = torch.nan
        return output

    monkeypatch.setattr(type(pipeline.autoencoder), "decode", decode_some_badly)
    index = generate(made, tmp_path / "out", top=2, num_samples=10)
    assert index["choice"]["num_dropped"] == 5
    assert load_generated(tmp_path / "out", pipeline.layout).isfinite().all()
    limits.clear()
    with pytest.raises(ValueError, match="at least 6 networks with finite"):
        generate(made, tmp_path / "none", top=6, num_samples=10)
    assert not (tmp_path / "none").exists()


# Command line


@pytest.fixture
def pdiff_generate(made, pdiff):
    dataset, pipeline = made
    if not (dataset.parent / "pipeline").exists():
        pipeline.save_pretrained(dataset.parent / "pipeline")
    return lambda *options: pdiff("generate", dataset.parent / "pipeline", *options, "--num-inference-steps", 2)


def test_command_says_what_was_selected(pdiff_generate, tmp_path):
    options = ("--num-samples", 40, "--choose", "val", "--top", 2, "--soup", "--reestimate-bn", "--trust", TRUSTED[0])
    code, out, err = pdiff_generate("--out", tmp_path / "out", *options)
    assert code == 0, err
    selection = json.loads((tmp_path / "out" / "index.json").read_text())["choice"]
    assert "40 networks drawn in" in out and "2 chosen on 200 val examples" in out and "optimistic" in out
    accuracies = [f"{accuracy:.2%}" for accuracy in selection["val_accuracy"]]
    assert f"Val accuracy: {', '.join(accuracies)}." in out
    assert f"Their soup: {selection['soup_val_accuracy']:.2%}" in out and "the best single one" in out
    assert "Before BatchNorm statistics were re-estimated" in out
    # The pipeline carries no base model to compare.
    assert out.count("Warning: whether") == 1 and "has no base model." in out
    code, out, err = pdiff_generate("--out", tmp_path / "json", *options, "--json")
    assert code == 0 and json.loads(out)["choice"]["draws"] == selection["draws"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", 2], "--top is for chosen networks"),
        (["--soup"], "--soup is for chosen networks"),
        (["--reestimate-bn"], "--reestimate-bn is for chosen networks"),
        (["--choose", "test"], "expected 'val' as the split to choose on, found 'test'"),
        (["--choose", "val", "--num-samples", 3, "--top", 4], "expected --top of at most --num-samples, 3, found 4"),
        (["--choose", "val", "--dataset", "nowhere"], "expected a parameter dataset at nowhere"),
        (["--choose", "val"], f"if you trust its code, give --trust {TRUSTED[0]}:norm_network."),
    ],
)
def test_command_refuses(pdiff_generate, tmp_path, options, message):
    code, _, err = pdiff_generate("--out", tmp_path / "out", *options)
    lines = [line for line in err.splitlines() if line.startswith("Error:")]
    assert code == 2 and len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.iterdir())


# Bad input


def test_only_val_may_be_selected_on(made, tmp_path):
    with pytest.raises(ValueError, match=r"expected 'val' .* found 'test'; what is chosen on test"):
        generate(made, tmp_path / "out", split="test")
    with pytest.raises(ValueError, match=r"expected 'val' .* found 'train'"):
        generate(made, tmp_path / "out", split="train")


@pytest.mark.parametrize(("top", "message"), [(0, "top must be at least 1"), (6, "top of at most num_samples, 5")])
def test_top_out_of_range(made, tmp_path, top, message):
    with pytest.raises(ValueError, match=message):
        generate(made, tmp_path / "out", num_samples=5, top=top)
    assert not list(tmp_path.iterdir())


def test_dataset_of_another_layout(made, tmp_path):
    model = norm_network()
    layout = ParameterLayout.from_model(model, "last_norms:1")
    base = BaseModel.imported("test_generation:norm_network").save_weights(model, tmp_path / "source")
    save_parameter_dataset(layout.flatten(model).repeat(2, 1), layout, tmp_path / "dataset", base)
    with pytest.raises(ValueError, match=r"different networks: tensor .* is generated in the pipeline and not"):
        generate((tmp_path / "dataset", made[1]), tmp_path / "out", top=1)


def test_dataset_without_images(made, tmp_path):
    dataset, pipeline = made
    _, base = read_layout(dataset)
    save_parameter_dataset(torch.randn(2, pipeline.layout.num_parameters), pipeline.layout, tmp_path / "dataset", base)
    with pytest.raises(ValueError, match="names no task; to evaluate networks"):
        generate((tmp_path / "dataset", pipeline), tmp_path / "out", top=1)
    with pytest.raises(ValueError, match="expected a parameter dataset at"):
        generate((tmp_path / "nowhere", pipeline), tmp_path / "out", top=1)


def test_base_model_that_is_not_trusted(made, tmp_path):
    dataset, pipeline = made
    with pytest.raises(ValueError, match="if you trust its code"):
        generate_networks(pipeline, tmp_path / "out", 2, choice=ChoiceConfig(ParameterDataset(dataset)))


def test_nothing_to_re_estimate(made, tmp_path):
    dataset, _ = made
    model = read_layout(dataset)[1].build(TRUSTED)
    layout = ParameterLayout.from_model(model, "last_norms:1")
    vectors = layout.flatten(model) + torch.randn(12, layout.num_parameters)
    metadata = {"task": {"kind": "image_classification", **TASK}}
    save_parameter_dataset(vectors, layout, tmp_path / "dataset", read_layout(dataset)[1], metadata=metadata)
    with pytest.raises(ValueError, match="BatchNorm layers whose statistics depend"):
        generate((tmp_path / "dataset", make_pipeline(layout, vectors)), tmp_path / "out", reestimate_batch_norm=True)
    assert not (tmp_path / "out").exists()
