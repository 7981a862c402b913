"""A row and the base model are a network that was, or it is not recorded."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data import rest
from pdiff_hf.data.dataset import load_base_model, load_parameter_dataset
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.forward import forward_logits
from pdiff_hf.layout import ParameterLayout

FACTORY = "test_rest:make_model"


def make_model():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make_model()


def base_of(model, folder):
    return BaseModel.imported(FACTORY).save_weights(model, folder)


def train_steps(model, optimizer, num=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for step in range(num):
        images, labels = torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 2
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        yield step


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


@pytest.mark.parametrize(
    ("select", "buffers"), [("head", False), ("last_norms:1", False), ("last_norms:1", True), ("all", True)]
)
def test_row_and_base_model_give_the_logits_of_the_recorded_network(tmp_path, model, select, buffers):
    list(train_steps(model, sgd(model)))
    base = base_of(model, tmp_path / "base")
    layout = ParameterLayout.from_model(model, select, buffers)
    layout.freeze_rest(model)
    images, expected = torch.randn(4, 1, 6, 6), []
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        for step in train_steps(model, sgd(model)):
            recorder.record(model, step=step)
            with torch.no_grad():
                expected.append(copy.deepcopy(model).eval()(images))
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    for vector, logits in zip(dataset_vectors(dataset, layout), expected, strict=True):
        network = load_base_model(tmp_path / "ds").build([FACTORY])
        layout.load_into(network, vector)
        assert torch.equal(network(images), logits)
    assert not torch.equal(expected[0], expected[-1])


def test_training_of_the_whole_network_after_saving_the_base_model_is_refused_at_its_first_step(tmp_path, model):
    base = base_of(model, tmp_path / "base")
    layout = ParameterLayout.from_model(model, "head")
    with pytest.raises(
        ValueError,
        match=r"step 0: tensor '\S+' is not in the layout, but differs from the base model's by up to \S+, and \d "
        r"more tensors do: .* never was; freeze what is not recorded \(ParameterLayout\.freeze_rest\), select all, or",
    ) as caught:
        with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
            for step in train_steps(model, sgd(model)):
                recorder.record(model, step=step)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_rest_that_begins_to_change_is_refused_and_earlier_rows_are_kept(tmp_path, model, options):
    base = base_of(model, tmp_path / "base")
    layout = ParameterLayout.from_model(model, "head")
    model.eval()
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        for step in range(5):
            recorder.record(model, step=step)
        list(train_steps(model, sgd(model, **options), num=1))
        with pytest.raises(ValueError, match=r"step 5: tensor '.*freeze_rest"):
            recorder.record(model, step=5)
    assert len(load_parameter_dataset(tmp_path / "ds")[0]) == 5


def test_running_statistics_that_follow_the_data_of_frozen_layers_are_refused(tmp_path, model):
    base = base_of(model, tmp_path / "base")
    layout = ParameterLayout.from_model(model, "head")
    layout.freeze_rest(model)
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        for step in range(5):
            recorder.record(model, step=step)
        model.train()
        model(torch.randn(8, 1, 6, 6))
        with pytest.raises(ValueError, match=r"'1\.running_\w+' is not in the layout.* eval mode .*buffers=True"):
            recorder.record(model, step=5)


def test_counters_may_differ(tmp_path, model):
    base = base_of(model, tmp_path / "base")
    layout = ParameterLayout.from_model(model, "all", buffers=True)
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        for step in train_steps(model, sgd(model)):
            recorder.record(model, step=step)
    assert model[1].num_batches_tracked == 3


@pytest.fixture
def compared(monkeypatch):
    """Names of the tensors that are read from the base model's weights, call by call."""
    calls = []
    differences = rest.StoredRest.differences

    def spy(self, state, names):
        calls.append(self.names.intersection(names))
        return differences(self, state, names)

    monkeypatch.setattr(rest.StoredRest, "differences", spy)
    return calls


def test_frozen_tensors_are_compared_again_only_when_their_version_changes(tmp_path, compared):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    layout = ParameterLayout.from_model(model, "head")
    layout.freeze_rest(model)
    with ParameterRecorder(layout, tmp_path / "ds", base_of(model, tmp_path / "base")) as recorder:
        for step in range(64):
            if step == 20:
                with torch.no_grad():
                    model[0].bias.copy_(model[0].bias.clone())
            model[2].weight.data += 1
            recorder.record(model, step=step)
        rest_names = {"0.weight", "0.bias", "1.weight", "1.bias"}
        # In full at the checkpoints 1, 2, 4, …, 64.
        assert compared == [rest_names] * 5 + [{"0.bias"}] + [rest_names] * 2
        compared.clear()
    assert compared == [rest_names]


def test_change_that_no_version_tells_is_found_at_the_end(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    layout = ParameterLayout.from_model(model, "head")
    layout.freeze_rest(model)
    recorder = ParameterRecorder(layout, tmp_path / "ds", base_of(model, tmp_path / "base"), run="a")
    for step in range(5):
        recorder.record(model, step=step)
    model[0].weight.data += 1
    recorder.record(model, step=5)
    with pytest.raises(ValueError, match=r"run 'a' in .*ds is not to be used: tensor '0\.weight' .*by up to 1:"):
        recorder.close()
    recorder.close()


def test_error_that_ends_a_recording_is_not_hidden_by_the_comparison_at_the_end(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    layout = ParameterLayout.from_model(model, "head")
    layout.freeze_rest(model)
    with pytest.raises(KeyError), ParameterRecorder(layout, tmp_path / "ds", base_of(model, tmp_path)) as recorder:
        recorder.record(model, step=0)
        model[0].weight.data += 1
        raise KeyError


def test_what_happens_to_the_rest_after_the_last_checkpoint_does_not_matter(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    layout = ParameterLayout.from_model(model, "head")
    layout.freeze_rest(model)
    with ParameterRecorder(layout, tmp_path / "ds", base_of(model, tmp_path / "base")) as recorder:
        recorder.record(model, step=0)
        model.half().requires_grad_(True)
    assert len(load_parameter_dataset(tmp_path / "ds")[0]) == 1


def test_state_dicts_are_compared_and_vectors_are_not(tmp_path, model):
    base = base_of(model, tmp_path / "base")
    layout = ParameterLayout.from_model(model, "head")
    copied = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        recorder.record(model.state_dict(), step=0)
        recorder.record(copied, step=1)
        recorder.record({name: copied[name] for name in layout.names}, step=2)
        copied["0.weight"] += 1
        with pytest.raises(ValueError, match=r"tensor '0\.weight' is not in the layout"):
            recorder.record(copied, step=3)
        recorder.record(layout.flatten(copied), step=3)


def test_without_a_base_model_nothing_is_compared(tmp_path, model, compared):
    with ParameterRecorder(ParameterLayout.from_model(model, "head"), tmp_path / "ds") as recorder:
        for step in train_steps(model, sgd(model)):
            recorder.record(model, step=step)
    assert not compared


@pytest.mark.parametrize(
    ("select", "buffers", "named"), [("head", True, "0.weight"), ("all", False, "1.running_mean")]
)
def test_base_model_without_weights_cannot_give_back_a_rest(tmp_path, model, select, buffers, named):
    layout = ParameterLayout.from_model(model, select, buffers)
    recorder = ParameterRecorder(layout, tmp_path / "ds", BaseModel.imported(FACTORY))
    with pytest.raises(ValueError, match=rf"tensor '{named}' is not in the layout.*no weights.*save_weights"):
        recorder.record(model, step=0)
    whole = ParameterLayout.from_model(model, "all", buffers=True)
    with ParameterRecorder(whole, tmp_path / "ds", BaseModel.imported(FACTORY)) as recorder:
        recorder.record(model, step=0)


def test_another_network_than_the_base_model_is_refused_by_tensor(tmp_path, model):
    layout = ParameterLayout.from_model(model, "head")
    recorder = ParameterRecorder(layout, tmp_path / "ds", base_of(model, tmp_path / "base"))
    wider, longer, shorter = make_model(), make_model(), make_model()
    wider[0] = nn.Conv2d(1, 3, 5)
    longer.extra = nn.Linear(2, 2)
    shorter[1] = nn.Identity()
    for other, message in (
        (wider, r"'0\.weight': expected shape \(3, 1, 3, 3\), found \(3, 1, 5, 5\)"),
        (longer, r"'extra\.bias': expected it in the base model's weights or tied"),
        (shorter, r"'1\.bias': expected it as in the base model's weights, found none"),
    ):
        with pytest.raises(ValueError, match=message):
            recorder.record(other, step=0)
    half = {name: tensor.double() if name == "0.bias" else tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"'0\.bias': expected dtype torch\.float32, found torch\.float64"):
        recorder.record(half, step=0)


def test_tied_tensors_follow_the_one_that_is_recorded(tmp_path):
    config = BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(config).eval()
    base = BaseModel.transformers(config, "BertForMaskedLM").save_weights(model, tmp_path / "base")
    layout = ParameterLayout.from_model(model, "bert.embeddings.word_embeddings.weight")
    layout.freeze_rest(model)
    ids = torch.randint(0, 11, (2, 8))
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        for step in range(2):
            with torch.no_grad():
                model.bert.embeddings.word_embeddings.weight.add_(0.1)
                expected = forward_logits(model, ids)
            recorder.record(model, step=2 * step)
            recorder.record({name: tensor.clone() for name, tensor in model.state_dict().items()}, step=2 * step + 1)
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    network = load_base_model(tmp_path / "ds").build()
    layout.load_into(network, dataset_vectors(dataset, layout)[-1])
    assert torch.equal(forward_logits(network, ids), expected)
