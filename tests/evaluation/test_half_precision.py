"""Networks of every type that a layout has are evaluated as they are, in their own type."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.evaluation.batch_norm import BatchNormEstimator
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.forward import FullForward, forward_logits, input_dtype
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.tasks.config import CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.train_selection import train_selection

IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def small_convnet():
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)
    return nn.Sequential(*layers)


def make_network(kind):
    torch.manual_seed(0)
    model = small_convnet()
    # Statistics of a network that was trained.
    model(IMAGES * 3)
    model.to(torch.float16 if kind == "float16" else torch.bfloat16).eval()
    if kind == "norms in float32":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
    return model


@pytest.fixture(params=["float16", "bfloat16", "norms in float32"])
def network(request):
    return make_network(request.param)


def test_logits_are_those_of_the_network_in_its_own_type(network):
    layout = ParameterLayout.from_model(network, ["1.*", "5.*"], buffers=True)
    vectors = torch.stack([layout.flatten(network), 1.25 * layout.flatten(network)])
    evaluator = ParameterEvaluator(network, layout, IMAGES, LABELS)
    assert evaluator.is_partial
    found = next(evaluator.logits(vectors))[1]
    assert found.dtype == torch.float32
    assert evaluator.predict(vectors).nll.dtype == torch.float32
    for vector, logits in zip(vectors, found, strict=True):
        layout.load_into(network, vector)
        with torch.no_grad():
            assert torch.equal(logits, network(IMAGES.to(input_dtype(network))).float())


def test_recorded_networks_come_back_to_the_bit_in_their_types(network, tmp_path):
    base = BaseModel.imported(f"{__name__}:small_convnet").save_weights(network, tmp_path)
    layout = ParameterLayout.from_model(network, "all", buffers=True)
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        recorder.record(network, step=0)
    dataset = ParameterDataset(tmp_path / "ds", trusted_imports=[__name__])
    rebuilt = dataset.base_model.build()
    for parameter in rebuilt.parameters():
        parameter.data.zero_()
    dataset.layout.load_into(rebuilt, dataset.vectors()[0])
    for name, tensor in network.state_dict().items():
        assert rebuilt.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(rebuilt.state_dict()[name], tensor)


def test_statistics_are_re_estimated(network):
    layout = ParameterLayout.from_model(network, "0.*")
    estimator = BatchNormEstimator(network, layout, IMAGES, batch_size=8)
    vector = estimator.extend(layout.flatten(network)[None])[0]
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].float()))
    with torch.no_grad():
        forward_logits(network, IMAGES)
    mean = estimator.layout.unflatten(vector)["1.running_mean"]
    assert mean.dtype == norm.running_mean.dtype
    # Statistics in half precision are rounded to it, in float32 they are those of the activations.
    rounding = {"rtol": 1e-5, "atol": 1e-6} if mean.dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(mean.float(), seen[0].mean((0, 2, 3)), **rounding)


def test_selection_is_trained(network):
    task = ImageClassification(ImageClassificationConfig())
    layout = ParameterLayout.from_model(network, "head")
    before = layout.flatten(network)
    config = CollectConfig(num_checkpoints=2, every=1, burn_in=0, train_batch_size=16)
    assert len(list(train_selection(task, network, layout, config))) == 2
    assert not torch.equal(layout.flatten(network), before)


def test_token_ids_stay_integers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=3, **sizes)).bfloat16().eval()
    ids = torch.randint(1, 20, (4, 5))
    full = FullForward(model, torch.device("cpu"))
    with torch.no_grad():
        logits = full(ids)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, model(input_ids=ids).logits.float())


def test_operation_that_the_device_lacks_is_said_in_one_line():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(144, 3)).half()
    with pytest.raises(
        ValueError, match=r"computes in torch\.float16 on cpu, found: .*not implemented for 'Half'; eval"
    ):
        ParameterEvaluator(model, ParameterLayout.from_model(model, "head"), IMAGES, LABELS)
