"""Merges of adapters by the real peft: each is checked as whoever uses it would see it."""

import warnings

import pytest
import torch
from peft import PeftModel

from adapters.adapter_cases import GOOD, load_base, lora, make_adapter, probe
from pdiff_hf import ParameterDataset
from pdiff_hf.adapters.gauge import delta_weights
from pdiff_hf.data.importing.adapters.importer import import_adapters
from pdiff_hf.evaluation.merging import adapters as merging
from pdiff_hf.evaluation.merging.adapters import EXACT, AdapterMerger
from pdiff_hf.evaluation.merging.factors import delta_error, mean_delta_svd
from pdiff_hf.evaluation.merging.peft_merges import COMBINATIONS, PeftMerger, weights_of

PEFT = [f"peft_{name}" for name in COMBINATIONS]
ALL = [EXACT, "mean_delta_svd", "mean_factors", *PEFT]


@pytest.fixture(scope="module")
def collection(bases, tmp_path_factory):
    """Datasets of three adapters by the name of a case."""
    made = {}

    def collect(name, num=3, config=None):
        if (name, num) not in made:
            folder = tmp_path_factory.mktemp(name)
            base, case, change = GOOD.get(name, ("bert", config, None))
            for number in range(num):
                make_adapter(folder / "all" / str(number), bases[base], (config or case)(), number, change)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_adapters(folder / "all", folder / "out", str(bases[base]), progress=False)
            made[name, num] = ParameterDataset(folder / "out"), folder / "all", bases[base]
        return made[name, num]

    return collect


def merger_of(dataset, **options):
    return AdapterMerger(dataset.base_model, dataset.layout, dataset.vectors()[:], **options)


@pytest.mark.parametrize(
    "name",
    ["rslora", "dora", "timm-conv"]
    + [pytest.param(n, marks=pytest.mark.slow) for n in ("plain", "lora-bias", "base-bias", "conv1d", "embedding")],
)
def test_every_merge_gives_one_adapter_back_and_is_reloaded(name, collection):
    found = merger_of(collection(name)[0]).merge_all()
    assert list(found) == ALL
    for merge in found.values():
        assert merge.identity_error < 1e-4 and merge.reload_error < 1e-4
    assert all(merge.row is not None for name, merge in found.items() if name != EXACT)
    errors = {name: merge.delta_error for name, merge in found.items()}
    assert errors[EXACT] == 0 and errors["mean_delta_svd"] == min(errors[name] for name in ALL[1:]) > 0.1
    assert found[EXACT].rank == 3 * found["mean_factors"].rank


@pytest.mark.parametrize(
    "name, cause",
    [
        ("plain", "its head is lost"),
        ("rslora", "rslora's scaling is taken twice"),
        ("dora", "DoRA's magnitudes are not merged"),
        ("lora-bias", "biases of B are not merged"),
    ],
)
def test_the_row_says_what_peft_alone_does_to_one_adapter(name, cause, collection):
    for combination, merge in merger_of(collection(name)[0]).merge_all().items():
        if combination in PEFT:
            assert merge.identity_error_as_is > 1 and cause in merge.note
        else:
            assert merge.identity_error_as_is is None and merge.note is None


def test_rslora_alone_is_too_strong_without_a_head_too(collection):
    dataset, _, _ = collection("headless", config=lambda: lora(use_rslora=True, lora_alpha=16, task_type=None))
    merge = merger_of(dataset).merge_all()["peft_linear"]
    assert merge.identity_error_as_is > 0.5 and "rslora" in merge.note and "head" not in merge.note
    plain, _, _ = collection("no-head")
    merge = merger_of(plain).merge_all()["peft_linear"]
    assert merge.identity_error_as_is < 1e-4 and merge.note is None


def test_what_peft_refuses_is_said(collection):
    found = merger_of(collection("base-bias")[0]).merge_all()
    assert found["peft_linear"].identity_error_as_is is None
    assert (
        "peft alone refuses these adapters: LoraModel supports only 1 adapter with bias" in found["peft_linear"].note
    )
    found = merger_of(collection("timm-groups")[0]).merge_all()
    assert found["peft_ties_svd"].row is None and "peft does not merge these layers so" in found["peft_ties_svd"].note
    assert found["peft_linear"].identity_error < 1e-4 and found[EXACT].identity_error < 1e-4
    assert found[EXACT].reload_error is None and "cannot be merged into the base" in found[EXACT].note


def test_the_exact_mean_and_that_at_one_rank_are_peft_s_cat_and_svd(collection):
    """On adapters without heads, as plain peft loads and merges them."""
    dataset, folder, base = collection("no-head")
    merger = merger_of(dataset)
    found = merger.merge_all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_base(base), folder / "0", adapter_name="0")
        for name in "12":
            model.load_adapter(folder / name, name)
        for kind in ("cat", "svd"):
            model.add_weighted_adapter(list("012"), [1 / 3] * 3, kind, kind)
    model.set_adapter("cat")
    assert (probe(model.eval(), "bert") - probe(merger.exact, "bert")).abs().max() < 1e-4
    model.set_adapter("svd")
    own = dataset.base_model.build()
    dataset.layout.load_into(own, found["mean_delta_svd"].row[0])
    assert (probe(model.eval(), "bert") - probe(own, "bert")).abs().max() < 1e-4


def test_peft_s_combinations_are_those_of_plain_peft(collection):
    dataset, folder, base = collection("no-head")
    rows = dataset.vectors()[:]
    merger = PeftMerger(dataset.base_model.build(), dataset.layout, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_base(base), folder / "0", adapter_name="0")
        for name in "12":
            model.load_adapter(folder / name, name)
        model.add_weighted_adapter(list("012"), [0.5] * 3, "merged", "ties_svd", density=0.5)
    model.set_adapter("merged")
    own = dataset.base_model.build()
    # In delta space the gauge plays no part; factors are others here than in the files.
    dataset.layout.load_into(own, merger.merge("ties_svd", 0.5, 0.5)[0])
    assert (probe(model.eval(), "bert") - probe(own, "bert")).abs().max() < 1e-4


def test_errors_against_the_exact_mean_are_relative_and_of_all_layers(collection):
    dataset, _, _ = collection("conv1d")
    layout, rows = dataset.layout, dataset.vectors()[:]
    merged = mean_delta_svd(layout, rows)
    missed = total = 0.0
    for (_, own), (_, products) in zip(delta_weights(layout, merged), delta_weights(layout, rows), strict=True):
        mean = products.mean(0, keepdim=True)
        missed, total = missed + (own - mean).square().sum(), total + mean.square().sum()
    assert delta_error(layout, merged, rows) == pytest.approx((missed / total).sqrt().item(), rel=1e-4)
    assert delta_error(layout, rows[:1], rows[:1]) < 1e-6
    assert delta_error(layout, torch.zeros_like(merged), rows) == pytest.approx(1)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_equal_adapters_give_themselves_by_the_first_weight(combination, collection):
    dataset, _, _ = collection("plain")
    rows = dataset.vectors()[:1]
    merger = PeftMerger(dataset.base_model.build(), dataset.layout, rows.expand(3, -1))
    found = merger.merge(combination, weights_of(combination, 3)[0], 1.0)
    assert delta_error(dataset.layout, found, rows) < 1e-5
    assert delta_error(dataset.layout, merger.merge(combination, 2.0, 1.0), rows) > 0.5


def test_weight_and_density_are_those_worth_most_and_draws_those_of_the_seed(collection):
    dataset, _, _ = collection("plain")
    rows = dataset.vectors()[:]
    wanted = PeftMerger(dataset.base_model.build(), dataset.layout, rows).merge("dare_linear", 1 / 3, 0.5, seed=7)

    def merge(seed):
        merger = merger_of(dataset, worth=lambda own: -(own - wanted).norm(dim=1), seed=seed)
        state = torch.random.get_rng_state()
        found = merger.merge_all()["peft_dare_linear"]
        assert torch.equal(torch.random.get_rng_state(), state)
        return found

    found = merge(7)
    assert found.chosen == {"weight": 1 / 3, "density": 0.5} and torch.equal(found.row, wanted)
    assert not torch.equal(merge(8).row, wanted)


def test_heads_are_averaged_alike_for_every_merge(collection):
    dataset, _, _ = collection("plain")
    rows = dataset.vectors()[:]
    heads = [spec for spec in dataset.layout.tensors if "modules_to_save" in spec.name]
    assert heads
    for merge in merger_of(dataset).merge_all().values():
        for spec in heads if merge.row is not None else ():
            own = slice(spec.offset, spec.offset + spec.numel)
            torch.testing.assert_close(merge.row[0, own], rows[:, own].mean(0))


def test_a_merge_that_changes_one_adapter_is_no_row(collection, monkeypatch):
    dataset, _, _ = collection("plain")
    whole = PeftMerger.merge

    def too_strong(self, combination, *args, **options):
        row = whole(self, combination, *args, **options)
        return row * 1.01 if combination == "ties" else row

    monkeypatch.setattr(PeftMerger, "merge", too_strong)
    found = merger_of(dataset).merge_all()
    assert found["peft_ties"].row is None and "does not give itself, off by" in found["peft_ties"].note
    assert found["peft_linear"].row is not None


def test_of_many_adapters_some_are_merged_evenly_spread(collection, monkeypatch):
    dataset, _, _ = collection("plain")
    monkeypatch.setattr(merging, "MAX_ADAPTERS", 2)
    merger = merger_of(dataset)
    assert torch.equal(merger.rows, dataset.vectors()[:][[0, 2]])
