import json

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, DistilBertConfig, PreTrainedTokenizerFast

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.forward import forward_logits
from pdiff_hf.hub.snapshot import without_paths
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.tasks.auto import load_task
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.collect import collect_checkpoints
from pdiff_hf.tasks.config import BaseTrainingConfig, CollectConfig, TextClassificationConfig
from pdiff_hf.tasks.evaluators import open_task
from small_texts import make_reviews

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BERT = BaseModel.transformers(BertConfig(**TINY, vocab_size=64), "BertForSequenceClassification")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reviews")
    make_reviews(200, seed=1).to_parquet(path / "train-00000-of-00001.parquet")
    make_reviews(100, seed=2).to_parquet(path / "test-00000-of-00001.parquet")
    return path


def make_task(folder, base_model=BERT, **values):
    values = {"tokenizer": "words", "vocab_size": 64, **values}
    return load_task(TextClassificationConfig(dataset=str(folder), **values), base_model)


def test_texts_become_padded_ids_of_words(folder):
    task = make_task(folder, val_size=40)
    ids, labels = task.arrays("train")
    assert ids.shape == (160, 21) and ids.dtype == torch.int64
    assert [len(task.arrays(split)[1]) for split in ("train", "val", "test")] == [160, 40, 100]
    assert (ids[:, 0] == task.tokenizer.cls_token_id).all()
    # One to four clauses of four words and three times `and` between them.
    assert set((ids != 0).sum(1).tolist()) == {6, 11, 16, 21}
    rows = datasets.load_dataset("parquet", data_files=str(folder / "train-*.parquet"), split="train")
    decoded = {task.tokenizer.decode(row, skip_special_tokens=True) for row in ids}
    assert decoded <= set(rows["text"]), "every word of the train texts is known"
    assert task.class_names == ["negative", "positive"]
    assert labels.bincount().tolist() == [80, 80]


def test_texts_are_cut_to_max_length(folder):
    ids, _ = make_task(folder, max_length=8).arrays("test")
    assert ids.shape[1] == 8
    assert ((ids == 3).sum(1) == 1).all(), "a text that is cut still ends with [SEP]"


def test_words_are_the_same_for_any_train_size_and_never_those_of_val_or_test(tmp_path):
    texts = {"train": [f"common word{i}" for i in range(40)], "test": [f"common other{i}" for i in range(40)]}
    for split, rows in texts.items():
        columns = {"text": rows, "label": [i % 2 for i in range(40)]}
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{split}.parquet")
    task, small = (make_task(tmp_path, val_size=10, train_size=size) for size in (None, 8))
    assert task.tokenizer.get_vocab() == small.tokenizer.get_vocab()
    words = set(task.tokenizer.get_vocab())
    val = {f"word{i}" for i in range(40)} - words
    assert len(val) == 10 and not any(word.startswith("other") for word in words)
    assert (task.arrays("val")[0] == task.tokenizer.unk_token_id).sum() == 10
    assert len(make_task(tmp_path, vocab_size=9).tokenizer) == 9


def test_pair_of_texts(tmp_path):
    columns = {"text": ["a cat"] * 20, "other": ["one dog"] * 20, "label": [0, 1] * 10}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{split}-0.parquet")
    task = make_task(tmp_path, text_pair_column="other")
    tokens = task.tokenizer.convert_ids_to_tokens(task.arrays("test")[0][0])
    assert tokens == ["[CLS]", "a", "cat", "[SEP]", "one", "dog", "[SEP]"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_csv_and_json_lines_with_labels_as_strings(tmp_path, suffix):
    for split, seed in (("train", 1), ("test", 2)):
        rows = make_reviews(60, seed)
        rows = rows.cast_column("label", datasets.Value("int64")).map(
            lambda row: {"text": row["text"], "class": "good" if row["label"] else "bad"}, remove_columns="label"
        )
        rows.to_csv(tmp_path / f"{split}.csv") if suffix == "csv" else rows.to_json(tmp_path / f"{split}.jsonl")
    task = make_task(tmp_path, label_column="class")
    assert task.class_names == ["bad", "good"]
    assert task.arrays("test")[1].tolist() == [0, 1] * 30
    file = tmp_path / f"test.{suffix}"
    file.write_text(file.read_text().replace("good", "fine"))
    with pytest.raises(ValueError, match=r"expected the labels of split 'train'.* found 'fine' in row 1 of"):
        make_task(tmp_path, label_column="class")


def test_tokenizer_of_a_folder_and_that_of_the_base_model(folder, tmp_path):
    words = make_task(folder).tokenizer
    words.save_pretrained(tmp_path / "tokenizer")
    task = make_task(folder, tokenizer=str(tmp_path / "tokenizer"))
    assert torch.equal(task.arrays("test")[0], make_task(folder).arrays("test")[0])
    assert task.describe()["tokenizer"] == "tokenizer", "no paths of this machine"
    config = BERT.kwargs["config"] | {"_name_or_path": str(tmp_path / "tokenizer")}
    named = BaseModel("transformers", BERT.name, {"config": config})
    assert make_task(folder, named, tokenizer=None).config.tokenizer == str(tmp_path / "tokenizer")


def test_problems_with_the_tokenizer_are_named_in_one_line(folder, tmp_path):
    without_padding = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(words_json(folder)))
    without_padding.save_pretrained(tmp_path / "unpadded")
    small = BaseModel.transformers(BertConfig(**TINY, vocab_size=10), "BertForSequenceClassification")
    other = BaseModel.transformers(BertConfig(**TINY, pad_token_id=1), "BertForSequenceClassification")
    for base_model, values, message in (
        (BERT, {"tokenizer": str(tmp_path)}, "expected a tokenizer in a folder or on the Hub"),
        (BERT, {"tokenizer": None}, "found none that belongs to the base model; give tokenizer"),
        (BERT, {"tokenizer": str(tmp_path / "unpadded")}, "expected a tokenizer with a padding token"),
        (small, {}, "expected a base model for the 31 tokens.* found vocab_size 10"),
        (other, {}, "pads with the tokenizer's token 0, found 1; set pad_token_id"),
        (BERT, {"text_column": "label"}, "expected texts in column 'label', found [01] in row 0"),
        (BERT, {"text_pair_column": "pair"}, "columns 'text' and 'pair' and 'label'.*found .'text', 'label'"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make_task(folder, base_model, **values)
        assert "\n" not in str(error.value)


def words_json(folder):
    return make_task(folder).tokenizer.backend_tokenizer.to_str()


def test_changed_texts_are_noticed(folder, tmp_path):
    recorded = make_task(folder).config
    again = load_task(recorded.model_dump(mode="json"), BERT)
    assert again.config == recorded
    # The name alone does not make it the same dataset.
    other = tmp_path / folder.name
    other.mkdir()
    make_reviews(200, seed=3).to_parquet(other / "train-00000-of-00001.parquet")
    make_reviews(100, seed=2).to_parquet(other / "test-00000-of-00001.parquet")
    changed = recorded.model_copy(update={"dataset": str(other)})
    with pytest.raises(ValueError, match=r"expected the content .* found .* another folder of the same name"):
        load_task(changed, BERT)
    with pytest.raises(ValueError, match=r"expected the tokens with sha256 .* by 'words'"):
        load_task(changed.model_copy(update={"dataset_fingerprint": None, "vocab_size": 12}), BERT)


def test_what_is_published_names_no_folder_of_this_machine(folder, monkeypatch):
    task = make_task(folder)
    assert str(folder.parent) not in json.dumps(task.describe())
    published = without_paths(task.config.model_dump(mode="json"))
    assert published["dataset"] == folder.name
    with pytest.raises(ValueError, match=r"expected a folder 'reviews\d*' with the texts.* link a copy of it"):
        load_task(published, BERT)
    monkeypatch.chdir(folder.parent)
    assert torch.equal(load_task(published, BERT).arrays("test")[0], task.arrays("test")[0])


def test_recipe_names_the_keys_of_the_kind(tmp_path):
    base = ["bert_tiny-head-sst2"]
    assert isinstance(load_recipe(*base).task, TextClassificationConfig)
    for override, message in (
        ("task.text_colum=a", "unknown key 'task.text_colum'; the nearest valid key is 'task.text_column'."),
        ("task.image_colum=a", "unknown key 'task.image_colum'; the nearest valid key is 'task.label_column'."),
        ("task.max_length=1", "key 'task.max_length': expected greater than or equal to 3, found 1."),
        ("task.max_length=x", "key 'task.max_length': expected a valid integer, .*, found 'x'."),
        ("task.dataset=null", "key 'task.dataset': expected a valid string, found None."),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe(*base, [override])
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(folder="reviews", select="head"))
    with pytest.raises(ValueError, match=r"key 'task.kind': expected one of .*'text_classification', found 'texts'"):
        load_recipe(file, ["task.kind=texts"])
    with pytest.raises(ValueError, match=r"unknown key 'task\.text_column'"):
        load_recipe("digits-mlp", ["task.text_column=a"])


def test_padding_is_masked():
    torch.manual_seed(0)
    # Larger weights than transformers' 0.02, so that attention is not uniform.
    config = BertConfig(**TINY, vocab_size=64, initializer_range=0.5)
    model = BaseModel.transformers(config, "BertForSequenceClassification").build()
    ids = torch.randint(4, 64, (3, 6))
    padded = torch.nn.functional.pad(ids, (0, 5))
    torch.testing.assert_close(forward_logits(model, padded), forward_logits(model, ids))
    assert not torch.allclose(model(padded).logits, forward_logits(model, ids), atol=0.01)


@pytest.mark.parametrize("select", ["head", "last_norms:2"])
def test_selections_of_text_classifiers(select):
    layout = ParameterLayout.from_model(BERT.build(), select)
    prefix = "bert.encoder.layer.1"
    if select == "head":
        assert layout.names == ("classifier.weight", "classifier.bias")
    else:
        modules = [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
        assert layout.names == tuple(f"{module}.{name}" for module in modules for name in ("weight", "bias"))


@pytest.mark.parametrize(
    ("name", "select"),
    [("Bert", "head"), ("Bert", "last_norms:2"), ("Bert", "all"), ("DistilBert", "last_norms:2")],
)
@pytest.mark.filterwarnings("error:.*cannot be exported")
def test_evaluation_on_ids_equals_the_full_forward(folder, name, select):
    torch.manual_seed(0)
    config = BertConfig(**TINY, vocab_size=64)
    if name == "DistilBert":
        config = DistilBertConfig(vocab_size=64, n_layers=2, dim=32, n_heads=2, hidden_dim=64)
    model = BaseModel.transformers(config, f"{name}ForSequenceClassification").build()
    layout = ParameterLayout.from_model(model, select)
    ids, labels = make_task(folder).arrays("test")
    # The last batch is filled up with texts of other lengths.
    evaluator = ParameterEvaluator(model, layout, ids, labels, batch_size=32)
    assert evaluator.is_partial
    vectors = layout.flatten(model) + 0.1 * torch.randn(3, layout.num_parameters)
    (_, found), *_ = evaluator.logits(vectors)
    for vector, logits in zip(vectors, found, strict=True):
        layout.load_into(model, vector)
        with torch.no_grad():
            torch.testing.assert_close(logits, forward_logits(model, ids))


def test_collected_texts_know_their_task(folder, tmp_path):
    torch.manual_seed(0)
    task, model = make_task(folder), BERT.build()
    training = BaseTrainingConfig(epochs=12, learning_rate=2e-3, train_batch_size=16)
    assert train_base_model(task, model, training, progress=False)["test_accuracy"] > 0.8
    config = CollectConfig(num_checkpoints=4, train_batch_size=32)
    found = collect_checkpoints(task, BERT, model, training, config, tmp_path / "dataset", progress=False)
    assert found["num_parameters"] == 128 and found["test_accuracy"] > 0.8
    stored = open_task(ParameterDataset(tmp_path / "dataset"))
    assert torch.equal(stored.arrays("test")[0], task.arrays("test")[0])


RECIPE = """
task: {{kind: text_classification, dataset: {folder}, tokenizer: words, vocab_size: 64}}
base_model:
  library: transformers
  name: BertForSequenceClassification
  kwargs:
    config: {{model_type: bert, vocab_size: 64, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
              intermediate_size: 64}}
base_training: {{epochs: 6, learning_rate: 2.0e-3, train_batch_size: 32}}
collect: {{select: "{select}", num_checkpoints: 60, train_batch_size: 32}}
# The head of two classes moves in about ten directions only.
autoencoder: {{kind: pca, latent_channels: 4, latent_length: 2}}
diffusion: {{steps: 150, block_out_channels: [32, 32]}}
generate: {{num_samples: 20}}
evaluate: {{fine_tune: false}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("select", ["head", "last_norms:2"])
def test_whole_way_from_texts_to_a_card(pdiff, tmp_path, select):
    folder = tmp_path / "reviews"
    folder.mkdir()
    make_reviews(600, seed=1).to_parquet(folder / "train-00000-of-00001.parquet")
    make_reviews(300, seed=2).to_parquet(folder / "test-00000-of-00001.parquet")
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(folder=folder, select=select))
    code, output, _ = pdiff("run", recipe, "--out", run, "--json")
    assert code == 0
    metrics = json.loads(output)
    means = {name: group["test_accuracy"]["mean"] for name, group in metrics["groups"].items()}
    # Of the adjectives a tenth is of the other class: a perfect reader reaches about 94 %.
    assert means["original"] > 0.85
    assert means["generated"] == pytest.approx(means["original"], abs=0.02)
    code, _, _ = pdiff("inspect", run / "dataset")
    assert code == 0
    for file in (run / "report" / "report.md", run / "pipeline" / "README.md"):
        text = file.read_text("utf-8")
        assert "300 test examples" in text and " images" not in text
        assert str(tmp_path) not in text
