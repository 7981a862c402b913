import gc
import weakref

import pytest
import torch
from torch import nn
from torch.fx.node import map_arg
from transformers import BertConfig, BertForSequenceClassification

from factories import count_exports
from pdiff_hf import disk_cache, exported
from pdiff_hf.disk_cache import texts_kept
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.exported import ExportedForward, decode, encode, export_forward
from pdiff_hf.forward import DECOMPOSITIONS, FullForward, SplitForward
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.models.functions import NetworkFunctions
from pdiff_hf.networks import mlp3, resnet_mini, vit_mini

IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 30, (5, 7), generator=torch.Generator().manual_seed(0))


def small_bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **sizes))


NETWORKS = {
    "perceptron": (lambda: mlp3(768, (5, 4), 3), IMAGES),
    "batch norm": (lambda: resnet_mini(3, (4, 4, 4, 4), 3), IMAGES),
    "attention": (lambda: vit_mini(3, 16, 8, 8, 1, 2, num_classes=3), IMAGES),
    "text": (small_bert, TOKENS),
}


class BySize(nn.Module):
    """Decides by the number of images."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(768, 3)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return logits + 1 if images.shape[0] == 3 else logits


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Nothing is kept before a test; batch sizes of the calls of torch.export in it."""
    return count_exports(monkeypatch)


def make(name, seed=0):
    torch.manual_seed(seed)
    make_model, inputs = NETWORKS[name]
    model = make_model().eval()
    return FullForward(model, torch.device("cpu")), inputs


def nodes_of(graph):
    """Nodes without their names."""
    numbers = {node: f"%{number}" for number, node in enumerate(graph.nodes)}
    return [
        (node.op, node.target if node.op == "call_function" else "", map_arg((node.args, node.kwargs), numbers.get))
        for node in graph.nodes
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_graph_for_all_sizes_becomes_that_of_one_size(name, counted):
    full, inputs = make(name)
    graph = export_forward(full, inputs[:2], DECOMPOSITIONS)
    fixed = exported._export(full, inputs, DECOMPOSITIONS, dynamic=False)
    assert (graph.batch_sizes, fixed.batch_sizes) == (range(2, exported.END), range(5, 6))
    assert nodes_of(graph.at(5).graph) == nodes_of(fixed.at(5).graph)
    sizes = [[node.meta.get("bytes") for node in each.at(5).graph.nodes] for each in (graph, fixed)]
    assert sizes[0] == sizes[1]
    assert counted == [2, 5]


@pytest.mark.parametrize("name", ["batch norm"])
def test_results_are_those_without_what_was_kept(name, counted, monkeypatch):
    full, inputs = make(name)
    layout = ParameterLayout.from_model(full.model, "all", buffers=True)
    vectors = layout.flatten(full.model) + torch.rand(2, layout.num_parameters) / 10

    def all_logits():
        labels = torch.zeros(len(inputs), dtype=torch.int64)
        judge = ParameterEvaluator(full.model, layout, inputs, labels, batch_size=3, networks_at_once=1)
        functions = NetworkFunctions(full.model, layout, inputs[:4])
        return torch.cat([logits for _, logits in judge.logits(vectors)]), functions.of(vectors, inputs)

    make_other, _ = make(name, seed=1)
    export_forward(make_other, inputs, DECOMPOSITIONS)
    found = all_logits()
    assert counted == [5]
    monkeypatch.setattr(exported, "hash_of_structure", lambda *_: None)
    expected = all_logits()
    assert counted == [5, 3, 4]
    assert all(map(torch.equal, found, expected))


def test_other_structure_is_exported_again(counted):
    full, inputs = make("perceptron")
    first = export_forward(full, inputs, DECOMPOSITIONS)
    full.model[2] = nn.GELU()
    second = export_forward(full, inputs, DECOMPOSITIONS)
    assert counted == [5, 5]
    assert nodes_of(first.graph) != nodes_of(second.graph)


def test_network_without_exact_description_is_exported_every_time(counted):
    full, inputs = make("perceptron")
    full.model.scale = torch.ones(1)
    for _ in range(2):
        assert export_forward(full, inputs, DECOMPOSITIONS).batch_sizes == range(5, 6)
    assert counted == [5, 5]


@torch.no_grad()
def test_network_that_decides_by_the_batch_size_has_a_graph_for_each(counted):
    torch.manual_seed(0)
    model = BySize()
    full = FullForward(model, torch.device("cpu"))
    for size in (5, 3, 1, 5, 3, 1):
        split = SplitForward(full, IMAGES[:size], ["linear.weight"])
        logits = split.tail(split.prefix(IMAGES[:size]), {"linear.weight": model.linear.weight})
        torch.testing.assert_close(logits, model(IMAGES[:size]), atol=1e-6, rtol=0)
    # The first of every two is for all sizes, in vain.
    assert counted == [5, 5, 3, 3, 1]


def test_upper_limits_of_the_batch_size_are_kept(monkeypatch, counted):
    class Limited(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(768, 3)

        def forward(self, images):
            logits = self.linear(images.flatten(1))
            return logits if images.shape[0] <= 4 else logits + 1

    full = FullForward(Limited(), torch.device("cpu"))
    assert export_forward(full, IMAGES[:2], DECOMPOSITIONS).batch_sizes == range(2, 5)
    assert export_forward(full, IMAGES[:4], DECOMPOSITIONS).batch_sizes == range(2, 5)
    assert export_forward(full, IMAGES, DECOMPOSITIONS).batch_sizes == range(5, 6)
    assert counted == [2, 5, 5]


def test_no_network_is_kept_alive_and_few_graphs_are(monkeypatch):
    monkeypatch.setattr(exported, "MAX_IN_MEMORY", 2)
    weights = []
    for width in (4, 5, 6):
        full = FullForward(mlp3(768, (width,), 3), torch.device("cpu"))
        weights.append(weakref.ref(full.model[1].weight))
        split = SplitForward(full, IMAGES, ["1.weight"])
        assert split.num_nodes == 6
        del full, split
    gc.collect()
    assert [weight() for weight in weights] == [None] * 3
    assert len(exported._IN_MEMORY) == 2


@pytest.mark.parametrize("name", ["perceptron", "text"])
def test_graph_is_what_it_was_as_text(name):
    full, inputs = make(name)
    graph = export_forward(full, inputs, DECOMPOSITIONS)
    read = decode(encode(graph))
    assert (read.inputs, read.batch_sizes) == (graph.inputs, graph.batch_sizes)
    assert nodes_of(read.graph) == nodes_of(graph.graph)
    assert [node.meta for node in read.at(5).graph.nodes] == [node.meta for node in graph.at(5).graph.nodes]


def test_operations_of_others_are_not_written():
    graph = torch.fx.Graph()
    graph.output(graph.call_function(torch.ops.prims.sum.default, (graph.placeholder("x"), [0])))
    with pytest.raises(ValueError, match="expected an operation of aten, found prims"):
        encode(ExportedForward(graph, {"x": ""}, range(2, 9)))


def new_process():
    exported._IN_MEMORY.clear()


def test_next_command_reads_the_graph(counted):
    full, inputs = make("perceptron")
    with texts_kept():
        first = export_forward(full, inputs, DECOMPOSITIONS)
        new_process()
        second = export_forward(make("perceptron", seed=1)[0], inputs[:2], DECOMPOSITIONS)
    assert counted == [5]
    assert second is not first
    assert nodes_of(second.graph) == nodes_of(first.graph)


def test_damaged_graph_or_one_of_another_torch_is_exported_again(counted, monkeypatch, recwarn):
    full, inputs = make("perceptron")
    with texts_kept():
        export_forward(full, inputs, DECOMPOSITIONS)
        (file,) = disk_cache.home_folder().iterdir()
        file.write_bytes(file.read_bytes()[:100])
        new_process()
        export_forward(full, inputs, DECOMPOSITIONS)
        assert counted == [5, 5]
        new_process()
        monkeypatch.setattr(torch, "__version__", "1.0")
        export_forward(full, inputs, DECOMPOSITIONS)
        assert counted == [5, 5, 5]
    assert len(list(disk_cache.home_folder().iterdir())) == 2
    assert not recwarn.list
