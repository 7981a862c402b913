"""A run whose networks are adapters of one base: everything that a run has, and merges."""

import json

import pytest
import torch

peft = pytest.importorskip("peft")

from adapters.adapter_cases import GOOD, lora, make_adapter, make_base  # noqa: E402
from pdiff_hf import ParameterDataset, PDiffPipeline  # noqa: E402
from pdiff_hf.adapters.gauge import delta_weights  # noqa: E402
from pdiff_hf.data.importing.adapters.importer import import_adapters  # noqa: E402
from pdiff_hf.evaluation.merging.adapters import evaluate_merges, why_not_merged  # noqa: E402
from pdiff_hf.pipelines.network_folder import load_generated  # noqa: E402
from pdiff_hf.results.merges import best_merge  # noqa: E402
from pdiff_hf.results.metrics import Metrics  # noqa: E402
from pdiff_hf.runs.recipe import load_recipe  # noqa: E402
from pdiff_hf.runs.stages import run_recipe  # noqa: E402
from small_texts import make_reviews  # noqa: E402

ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "SEQ_CLS", "target_modules": ["query", "value"]}


def imported(folder, config, num=3):
    base = make_base(folder, "bert")
    for number in range(num):
        make_adapter(folder / "all" / str(number), base, config(number), number)
    import_adapters(folder / "all", folder / "dataset", str(base), progress=False)
    return ParameterDataset(folder / "dataset")


@pytest.fixture(scope="module")
def examples():
    generator = torch.Generator().manual_seed(0)
    inputs, labels = (
        torch.randint(1, 64, (40, 8), generator=generator),
        torch.randint(0, 5, (40,), generator=generator),
    )
    return {"val": (inputs, labels), "test": (inputs.flip(0), labels)}


@pytest.mark.parametrize("kind", ["mixed", "rslora"])
def test_merges_of_peft_are_what_they_are_called(kind, tmp_path, examples):
    configs = {"mixed": lambda n: lora(lora_alpha=4 + 4 * n), "rslora": lambda n: lora(lora_alpha=16, use_rslora=True)}
    dataset = imported(tmp_path, configs[kind])
    merges = evaluate_merges(dataset.base_model, dataset.layout, dataset.vectors(), examples)
    # Folded, also rslora is merged into itself, and what is written is what is read.
    for name, merge in merges.items():
        if merge.delta_error is not None:
            assert merge.identity_error < 1e-5 and merge.reload_error < 1e-5, name
    assert merges["cat"].delta_error < 1e-6 < merges["svd"].delta_error < merges["linear"].delta_error
    assert 0 <= merges["single"].test_accuracy <= merges["best_single"].val_accuracy + 1
    assert best_merge(merges) not in ("single", "best_single")
    assert not any(merge.note for merge in merges.values())


def test_the_exact_mean_is_that_of_the_outputs_of_linear_layers(tmp_path, examples):
    dataset = imported(tmp_path, lambda n: lora(lora_alpha=8))
    (merged,) = (
        m
        for n, m in evaluate_merges(dataset.base_model, dataset.layout, dataset.vectors(), examples).items()
        if n == "cat"
    )
    # By hand: the mean of ΔW in the base's own layers.
    model = dataset.base_model.build()
    rows = dataset.vectors()[:]
    dataset.layout.load_into(model, rows.mean(0))
    base = model.unload()
    for layer, products in delta_weights(dataset.layout, rows):
        weight = base.get_submodule(layer.removeprefix("base_model.model.")).weight
        weight.data += 2.0 * products.mean(0)[0]
    inputs, labels = examples["test"]
    with torch.no_grad():
        found = base(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits.argmax(1)
    assert (found == labels).double().mean().item() == pytest.approx(merged.test_accuracy)


@pytest.mark.parametrize(
    "name, reason", [("dora", "DoRA"), ("lora-bias", "a bias"), ("ia3", "no adapters with factors")]
)
def test_what_peft_merges_into_something_else_is_refused(name, reason, tmp_path, examples):
    dataset = imported(tmp_path, lambda n: GOOD[name][1](), num=2)
    assert reason in why_not_merged(dataset.base_model, dataset.layout)
    with pytest.raises(ValueError, match=r"adapters cannot be merged: they"):
        evaluate_merges(dataset.base_model, dataset.layout, dataset.vectors(), examples)


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "reviews").mkdir()
    for split, (rows, seed) in {"train": (160, 0), "test": (64, 1)}.items():
        make_reviews(rows, seed).to_parquet(folder / "reviews" / f"{split}.parquet")
    settings = [
        f"task.dataset={folder / 'reviews'}",
        "task.text_column=text",
        "task.label_column=label",
        "task.test_split=test",
        "task.train_size=null",
        "task.val_size=32",
        "task.test_size=null",
        "task.vocab_size=64",
        "task.max_length=16",
        "collect.select=adapter",
        f"base_model.adapter={json.dumps(ADAPTER)}",
        "base_model.kwargs.config.initializer_range=0.3",
        "autoencoder.kind=pca",
    ]
    recipe = load_recipe("bert_tiny-head-sst2", settings, profile="cpu-smoke")
    return folder / "run", run_recipe(recipe, folder / "run")


def test_a_run_collects_generates_and_judges_adapters(adapter_run):
    folder, metrics = adapter_run
    dataset = ParameterDataset(folder / "dataset")
    assert all("lora_" in name or "modules_to_save" in name for name in dataset.layout.names)
    pipe = PDiffPipeline.from_pretrained(folder / "pipeline")
    model = pipe.build_model(load_generated(folder / "generated", pipe.layout)[:][0])
    assert isinstance(model, peft.PeftModel)
    assert (folder / "generated" / "00000" / "adapter_config.json").is_file()
    assert metrics.groups["generated"].n == 8


def test_its_report_says_which_merge_is_best(adapter_run):
    folder, _ = adapter_run
    merges = Metrics.read(folder / "report" / "metrics.json").merges
    assert merges["cat"].delta_error < 1e-6 and merges["svd"].reload_error < 1e-5
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Which merge is best?" in text and f"`{best_merge(merges)}`" in text and "| magnitude_prune |" in text
