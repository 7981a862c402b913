import copy
import sys
from functools import partial

import pytest
import torch
from torch import nn

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import load_base_model, load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.files import read_json
from pdiff_hf.forward import forward_logits
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.collect import collect_checkpoints, partial_folder
from pdiff_hf.tasks.collect_runs import RunCollector
from pdiff_hf.tasks.config import BaseTrainingConfig, CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.runs_config import RunsConfig
from pdiff_hf.tasks.train_selection import share_prefix, train_selection
from processes import launch_two, run

BASE = BaseModel.imported("pdiff_hf.tasks.networks:convnet3", channels=(4, 6, 8))
BASE_TRAINING = BaseTrainingConfig(epochs=2, learning_rate=5e-3, train_batch_size=32)


class NormNet(nn.Module):
    """Convolutions with BatchNorm, dropout and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(6, 10)

    def forward(self, images):
        hidden = self.norm1(self.conv1(images)).relu()
        hidden = self.norm2(self.conv2(hidden)).relu()
        return self.head(self.dropout(hidden.mean((2, 3))))


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=200, val_size=100, test_size=100))


@pytest.fixture(scope="module")
def model(task):
    torch.manual_seed(0)
    network = BASE.build()
    train_base_model(task, network, BASE_TRAINING, device="cpu", progress=False)
    return network


@pytest.fixture
def norm_net():
    torch.manual_seed(0)
    network = NormNet()
    with torch.no_grad():  # running statistics of their own
        network(torch.randn(64, 1, 8, 8))
    return network


def collect(task, model, folder, seed=0, **values):
    config = CollectConfig(**{"select": "all", "num_checkpoints": 6, "train_batch_size": 32, **values})
    return collect_checkpoints(task, BASE, model, BASE_TRAINING, config, folder, seed, progress=False)


def read(folder):
    dataset, layout = load_parameter_dataset(folder)
    return dataset_vectors(dataset, layout), dataset.with_format(None).to_dict(), layout


def walk(task, network, layout, seed=0, **values):
    """Vectors of all checkpoints, and the network after them."""
    config = CollectConfig(**{"num_checkpoints": 5, "train_batch_size": 32, **values})
    network = copy.deepcopy(network)
    prefix = share_prefix(task, network, layout, config, [(seed, 0)])
    steps = train_selection(task, network, layout, config, seed, prefix=prefix)
    return [layout.flatten(network) for _ in steps], network


def test_dataset_has_every_checkpoint_with_its_accuracies(task, model, tmp_path):
    result = collect(task, model, tmp_path / "dataset", every=2)
    vectors, columns, layout = read(tmp_path / "dataset")
    assert vectors.shape == (6, layout.num_parameters)
    assert columns["step"] == [2, 4, 6, 8, 10, 12]
    assert columns["epoch"] == pytest.approx([step / 6 for step in columns["step"]])
    network = load_base_model(tmp_path / "dataset").build()
    for split in ("val", "test"):
        images, labels = task.arrays(split)
        for vector, expected in zip(vectors, columns[f"{split}_accuracy"], strict=True):
            layout.load_into(network, vector)
            accuracy = (forward_logits(network, images).argmax(-1) == labels).float().mean().item()
            assert accuracy == pytest.approx(expected, abs=1e-6)
    assert result["num_checkpoints"] == 6
    assert result["test_accuracy"] == pytest.approx(sum(columns["test_accuracy"]) / 6)
    metadata = read_json(tmp_path / "dataset" / "stats.json")["metadata"]
    assert metadata["task"]["dataset"] == "digits"
    assert metadata["collect"]["every"] == 2
    assert metadata["base_training"]["epochs"] == 2


def test_burn_in_leaves_the_first_checkpoints_out(task, model, tmp_path):
    collect(task, model, tmp_path / "all", num_checkpoints=11)
    collect(task, model, tmp_path / "late", num_checkpoints=4, every=2, burn_in=3)
    vectors, columns, _ = read(tmp_path / "late")
    assert columns["step"] == [5, 7, 9, 11]
    assert torch.equal(vectors, read(tmp_path / "all")[0][4::2])


def test_burn_in_sees_the_images_of_all_its_steps(task, norm_net):
    layout = ParameterLayout.from_model(norm_net, "head")
    vectors, _ = walk(task, norm_net, layout, num_checkpoints=9)
    late, _ = walk(task, norm_net, layout, num_checkpoints=2, burn_in=7)
    assert torch.equal(torch.stack(late), torch.stack(vectors[7:]))


def test_same_seed_same_vectors(task, model, tmp_path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        collect(task, model, tmp_path / name, seed)
    first, again, other = (read(tmp_path / name)[0] for name in ("first", "again", "other"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_given_model_is_not_changed_and_carried_along(task, model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    collect(task, model, tmp_path / "dataset", select="head")
    carried = load_base_model(tmp_path / "dataset").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(carried[name], before[name])


def test_runs_start_from_the_same_base_with_another_order(task, model, tmp_path):
    collect(task, model, tmp_path / "dataset", runs=2, learning_rate=1e-3)
    vectors, columns, layout = read(tmp_path / "dataset")
    assert columns["run"] == ["run-0"] * 6 + ["run-1"] * 6
    assert columns["seed"] == [0] * 6 + [1] * 6
    # AdamW's first step moves a parameter by at most the learning rate and the weight decay.
    start = layout.flatten(model)
    assert (vectors[[0, 6]] - start).abs().max() < 1.1e-3
    assert not torch.equal(vectors[0], vectors[6])


def test_independent_runs_have_a_base_of_their_own(task, model, tmp_path):
    collect(task, model, tmp_path / "dataset", runs=2, independent=True, learning_rate=1e-3)
    vectors, _, layout = read(tmp_path / "dataset")
    start = layout.flatten(model)
    assert (vectors[0] - start).norm() < 0.1 * start.norm()
    assert (vectors[6] - start).norm() > 0.5 * start.norm()


def test_one_checkpoint_of_a_trajectory_is_refused():
    with pytest.raises(ValueError, match=r"expected num_checkpoints of 2 or more, found 1; set collect\.kind=runs"):
        CollectConfig(num_checkpoints=1, runs=3)


@pytest.mark.parametrize("section", [CollectConfig, partial(RunsConfig, runs=4)])
def test_common_orders_of_hidden_units_of_version_0_1_are_refused_with_what_takes_their_place(section):
    assert section(align="none") == section()
    with pytest.raises(ValueError, match=r"found 'permutation'; take it out, .* autoencoder\.kind=functional"):
        section(align="permutation")


class Killed(BaseException):
    pass


def kill_after(monkeypatch, num_parts):
    """Once so many parts were collected, before the last one has its name; returns the runs of the parts begun."""
    made, whole = [], RunCollector.collect

    def killed(self, runs, folder, advance):
        made.append(list(runs))
        whole(self, runs, folder, advance)
        if len(made) == num_parts:
            raise Killed

    monkeypatch.setattr(RunCollector, "collect", killed)
    return made


def test_killed_collection_goes_on_where_it_stopped(task, model, tmp_path, monkeypatch):
    values = {"runs": 4, "learning_rate": 1e-3}
    collect(task, model, tmp_path / "whole", **values)
    made = kill_after(monkeypatch, 3)
    with pytest.raises(Killed):
        collect(task, model, tmp_path / "dataset", **values)
    assert not (tmp_path / "dataset").exists()
    collect(task, model, tmp_path / "dataset", **values)
    # The third run had no name yet.
    assert made == [[0], [1], [2], [2], [3]]
    assert torch.equal(read(tmp_path / "dataset")[0], read(tmp_path / "whole")[0])
    assert read(tmp_path / "dataset")[1] == read(tmp_path / "whole")[1]
    assert not partial_folder(tmp_path / "dataset").exists()


def test_killed_collection_of_another_plan_begins_anew(task, model, tmp_path, monkeypatch):
    made = kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        collect(task, model, tmp_path / "dataset", runs=2, learning_rate=1e-3)
    collect(task, model, tmp_path / "dataset", runs=2, learning_rate=2e-3)
    assert made == [[0], [1], [0], [1]]


COMMAND = """
from pdiff_hf.cli import main
from pdiff_hf.machine import process_state

try:
    main()
finally:
    print(f"processes: {process_state().num_processes}", flush=True)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["runs", "seeds"])
def test_two_processes_collect_what_one_collects(tmp_path, kind):
    runs = ["collect.runs=3", "collect.num_checkpoints=4"]
    seeds = ["collect.runs=120", "collect.num_checkpoints=1", "collect.independent=true"]
    settings = ["base_training.epochs=2", "autoencoder.latent_channels=1", "autoencoder.holdout_every=4"]
    settings += runs if kind == "runs" else seeds
    arguments = [item for setting in settings for item in ("--set", setting)]
    (tmp_path / "script.py").write_text(COMMAND)
    command = [tmp_path / "script.py", "collect", "digits-mlp", *arguments, "--out"]
    code, out = run(sys.executable, *command, tmp_path / "one")
    assert code == 0 and "processes: 1" in out, out
    code, out = launch_two(*command, tmp_path / "two")
    assert code == 0 and out.count("processes: 2") == 2, out
    assert out.count("checkpoints of 2,778 parameters") == 1
    (one, left, _), (two, right, _) = (read(tmp_path / name) for name in ("one", "two"))
    assert torch.equal(one, two)
    assert left == right
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("one", "two")]
    assert files[0] == files[1]


def test_independent_runs_must_collect_every_tensor(task, model, tmp_path):
    with pytest.raises(ValueError, match=r"'0.weight' is left out; set collect.select=all"):
        collect(task, model, tmp_path / "dataset", select="head", runs=2, independent=True)


@pytest.mark.parametrize("share", [True, False])
def test_frozen_tensors_and_statistics_stay_to_the_bit(task, norm_net, share, monkeypatch):
    if not share:
        monkeypatch.setattr("pdiff_hf.tasks.task.MAX_CACHE_BYTES", 0)
    layout = ParameterLayout.from_model(norm_net, "last_norms:1")
    vectors, after = walk(task, norm_net, layout)
    for name, tensor in norm_net.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]) == (name not in layout.names), name
    assert torch.equal(vectors[-1], layout.flatten(after))


def test_shared_prefix_takes_the_steps_of_the_full_forward(task, norm_net, monkeypatch):
    layout = ParameterLayout.from_model(norm_net, ["norm2.*", "head.*"])
    config = CollectConfig(num_checkpoints=5, train_batch_size=32)
    assert share_prefix(task, norm_net, layout, config) is not None
    shared, _ = walk(task, norm_net, layout)
    monkeypatch.setattr("pdiff_hf.tasks.task.MAX_CACHE_BYTES", 0)
    assert share_prefix(task, norm_net, layout, config) is None
    full, _ = walk(task, norm_net, layout)
    # Float32 rounding of the gradients, which AdamW's normalisation may enlarge.
    torch.testing.assert_close(torch.stack(shared), torch.stack(full), atol=1e-4, rtol=1e-4)


def test_prefix_is_computed_for_the_images_that_are_seen(task, norm_net):
    layout = ParameterLayout.from_model(norm_net, "head")
    config = CollectConfig(select="head", num_checkpoints=2, train_batch_size=32)
    prefix = share_prefix(task, norm_net, layout, config, [(0, 3), (1, 3)])
    order = [index for seed in (0, 1) for index in task.batch_indices("train", 32, seed, 3)[:2]]
    seen = torch.cat(order).unique()
    assert torch.equal((prefix.rows >= 0).nonzero()[:, 0], seen)
    assert len(prefix.labels) == len(seen) < len(task.arrays("train")[1])
    images, labels = task.arrays("train")
    tensors = {name: norm_net.state_dict()[name] for name in layout.names}
    for index in order:
        logits, targets = prefix.logits(index, tensors)
        assert torch.equal(targets, labels[index])
        torch.testing.assert_close(logits, forward_logits(norm_net.eval(), images[index]))


def test_selected_statistics_follow_the_data(task, norm_net):
    layout = ParameterLayout.from_model(norm_net, ["norm2.*"], buffers=True)
    vectors, after = walk(task, norm_net, layout)
    assert not torch.equal(after.norm2.running_mean, norm_net.norm2.running_mean)
    assert torch.equal(after.norm1.running_mean, norm_net.norm1.running_mean)
    assert torch.equal(layout.unflatten(vectors[-1])["norm2.running_var"], after.norm2.running_var)


def test_network_that_cannot_be_exported_is_trained_in_full(task, norm_net):
    class Branching(NormNet):
        def forward(self, images):
            return super().forward(images) if images.mean() > -1e9 else images

    torch.manual_seed(0)
    network = Branching()
    layout = ParameterLayout.from_model(network, "head")
    with pytest.warns(UserWarning, match="Branching cannot be exported"):
        vectors, _ = walk(task, network, layout)
    assert not torch.equal(vectors[0], vectors[-1])


def test_learning_rate_depends_on_the_selection(task, norm_net):
    steps = {}
    for select in ("all", "last_norms:1"):
        layout = ParameterLayout.from_model(norm_net, select)
        vectors, _ = walk(task, norm_net, layout, weight_decay=0.0)
        steps[select] = (vectors[0] - layout.flatten(norm_net)).abs().max().item()
    # The first step of Adam is the learning rate.
    assert steps == pytest.approx({"all": 3e-3, "last_norms:1": 3e-2}, rel=1e-3)


def test_folder_that_is_not_empty_is_refused_and_kept(task, model, tmp_path):
    (tmp_path / "layout.json").write_text("mine")
    with pytest.raises(ValueError, match="expected an empty or new folder"):
        collect(task, model, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["layout.json"]


def test_diverged_collection_leaves_no_dataset(task, model, tmp_path):
    with pytest.raises(ValueError, match=r"lower collect\.learning_rate|NaN or infinite"):
        collect(task, model, tmp_path / "dataset", learning_rate=1e30)
    assert not (tmp_path / "dataset").exists()
