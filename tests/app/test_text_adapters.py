"""Networks that read texts and are adapters: mistakes are texts, a download is a folder that peft loads."""

import json
import zipfile

import pytest
import torch

peft = pytest.importorskip("peft")

from pdiff_hf.adapters.folder import read_adapter  # noqa: E402
from pdiff_hf.app.details import Files, list_mistakes, show_mistakes  # noqa: E402
from pdiff_hf.app.drawing import image_input, text_input  # noqa: E402
from pdiff_hf.app.lab import Lab  # noqa: E402
from pdiff_hf.app.sources import open_source  # noqa: E402
from pdiff_hf.data.dataset import ParameterDataset  # noqa: E402
from pdiff_hf.runs.recipe import load_recipe  # noqa: E402
from pdiff_hf.runs.stages import collect, train_stages  # noqa: E402
from small_texts import make_reviews  # noqa: E402

ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "SEQ_CLS", "target_modules": ["query", "value"]}


@pytest.fixture(scope="module")
def texts_lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "reviews").mkdir()
    for split, (rows, seed) in {"train": (160, 0), "test": (64, 1)}.items():
        make_reviews(rows, seed).to_parquet(folder / "reviews" / f"{split}.parquet")
    task = {"dataset": folder / "reviews", "text_column": "text", "label_column": "label", "test_split": "test"}
    task |= {"train_size": "null", "val_size": 32, "test_size": "null", "vocab_size": 64, "max_length": 16}
    settings = [f"task.{key}={value}" for key, value in task.items()]
    settings += ["collect.select=adapter", f"base_model.adapter={json.dumps(ADAPTER)}", "autoencoder.kind=pca"]
    recipe = load_recipe("bert_tiny-head-sst2", settings, profile="cpu-smoke")
    collect(recipe, folder / "dataset")
    train_stages(recipe, ParameterDataset(folder / "dataset"), folder, lambda line: None)
    return Lab(open_source(str(folder)))


def test_mistakes_are_shown_as_texts_and_a_typed_text_is_voted_on(texts_lab, ask):
    drawn = texts_lab.draw(ask(num_samples=3))
    assert texts_lab.source.notes == [] and drawn.similarity.isfinite().all()
    assert show_mistakes(texts_lab, drawn, 0).count("<blockquote>") == min(24, len(list_mistakes(texts_lab, drawn, 0)))
    votes = texts_lab.vote(drawn.request, text_input(texts_lab, "a good film"))
    assert votes["generated"].size == 3 and len(votes["generated"].counts) == 2
    with pytest.raises(ValueError, match="type something first"):
        text_input(texts_lab, " ")
    with pytest.raises(ValueError, match="take no images"):
        image_input(texts_lab, None)


def test_an_adapter_is_downloaded_as_a_folder_of_peft(texts_lab, ask, tmp_path):
    drawn = texts_lab.draw(ask(num_samples=3))
    files = Files(texts_lab.source.pipeline)
    with zipfile.ZipFile(files.write(drawn, 2)) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "network-0-002"
    assert (folder / "adapter_config.json").is_file()
    base = texts_lab.source.pipeline.base_model
    state = read_adapter(folder / "adapter_model.safetensors", base.adapter)
    assert torch.equal(texts_lab.source.pipeline.layout.flatten(state), drawn.vectors[2])
