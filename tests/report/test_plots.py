import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from matplotlib import image

from pdiff_hf.evaluation.groups import GROUPS
from pdiff_hf.report.plots.curves import plot_ensembles, plot_loss_curves
from pdiff_hf.report.plots.maps import plot_iou_matrix, plot_latent_pca
from pdiff_hf.report.plots.networks import plot_accuracy_histograms, plot_accuracy_similarity
from pdiff_hf.report.plots.style import COLORS
from pdiff_hf.report.plots.tasks import plot_condition_map
from pdiff_hf.results.metrics import Metrics
from small_results import evaluate


@pytest.fixture(scope="module")
def result():
    return evaluate()


def draw_all(plot, folder):
    """Every form of a plot: pixels of the PNG, and both SVGs."""
    pixels = image.imread(plot.save_png(folder))
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    assert pixels.std() > 0.03
    svgs = plot.svgs()
    assert set(svgs) == {"wide", "narrow"}
    assert plot.title and plot.alt and plot.note
    return svgs


def draw_quickly(plot, folder):
    plot.save_png(folder)
    plot.draw(True)
    assert "nan" not in plot.title + plot.alt + plot.note


def width(svg):
    return float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])


def contrast(a, b):
    def luminance(color):
        values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_every_group_has_a_style_of_its_own():
    styles = [(group.color, group.marker) for group in GROUPS.values()]
    assert len(set(styles)) == len(styles) and all(color in COLORS for color, _ in styles)
    markers = [marker for _, marker in styles]
    assert len(set(markers)) == len(markers), "told apart without colours"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colors_are_seen_on_their_background(theme):
    surface = COLORS["surface"][theme]
    for name, shades in COLORS.items():
        if name not in ("surface", "grid"):
            # WCAG 2: 4.5 for text, 3 for graphics.
            assert contrast(shades[theme], surface) >= (4.5 if name in ("text", "muted") else 3), name


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colors_of_sizes_are_seen_on_both_backgrounds(theme):
    latents = {name: torch.randn(9, 3) for name in ("seen", "oracle", "generated")}
    sizes = dict.fromkeys(latents, torch.arange(1, 10))
    plot = plot_condition_map(latents, sizes, {name: [("", "")] * 9 for name in latents})
    shown = [entry.color for entry in plot.drawings()["wide"].legend]
    assert len(set(shown)) == 9
    assert all(contrast(color, COLORS["surface"][theme]) >= 3 for color in shown)


def test_accuracy_similarity_shows_all_groups_and_names_their_means(result, tmp_path):
    plot = plot_accuracy_similarity(result.metrics, result.groups)
    svgs = draw_all(plot, tmp_path)
    entries = {entry.group: entry.text for entry in plot.drawings()["wide"].legend}
    for name, group in result.metrics.to_dict()["groups"].items():
        assert entries[name] == f"{name.replace('_', ' ')} {100 * group['test_accuracy']['mean']:.2f} %"
        assert f"{group['similarity']['iou_max_mean']:.3f}" in plot.alt
    assert width(svgs["narrow"]) < width(svgs["wide"]) / 2


def test_a_hopeless_group_does_not_squeeze_the_others(result):
    metrics = result.metrics.to_dict()
    hopeless = metrics["groups"]["noise_0.1"]
    hopeless["test_accuracy"]["mean"], hopeless["similarity"]["iou_max_mean"] = 0.0, 0.01
    axes = plot_accuracy_similarity(Metrics.from_dict(metrics), result.groups).draw(False).axes[0]
    low, high = axes.get_ylim()
    assert low > 1 and axes.get_xlim()[0] > 0.011
    means = [100 * metrics["groups"][name]["test_accuracy"]["mean"] for name in ("original", "generated")]
    assert all(low < mean < high for mean in means)
    assert "Beyond the edge: noise 0.1" in plot_accuracy_similarity(Metrics.from_dict(metrics), result.groups).note


def test_title_tells_what_the_interval_says(result):
    metrics = result.metrics.to_dict()
    for interval, expected in (([-0.2, -0.1], "less accurate"), ([-0.1, 0.1], "not disting"), ([0.1, 0.2], "more")):
        metrics["groups"]["generated"]["difference_to_original"]["ci95"] = interval
        assert expected in plot_accuracy_similarity(Metrics.from_dict(metrics)).title


def test_svgs_follow_the_page_and_do_not_interfere(result):
    plots = [plot_accuracy_similarity(result.metrics, result.groups), plot_iou_matrix(result.iou, result.iou_sizes)]
    svgs = [svg for plot in plots for svg in plot.svgs().values()]
    own = [light for light, _ in COLORS.values()]
    ids = [id for svg in svgs for id in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs:
        assert "var(--text)" in svg and not any(color in svg for color in own)
        assert svg.startswith("<svg ") and svg.rstrip().endswith("</svg>")
        assert set(re.findall(r'xlink:href="(.{1,5})', svg)) <= {"data:", *(f"#{id[:4]}" for id in ids)}


def test_histograms_hold_every_network(result, tmp_path):
    plot = plot_accuracy_histograms(result.metrics, result.groups)
    draw_all(plot, tmp_path)
    figure = plot.draw(False)
    for axes in figure.axes:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
    share = result.metrics.to_dict()["groups"]["generated"]["novel_and_performant"]["performant"]
    assert f"{100 * share:.0f} % of the generated networks" in plot.title


def test_latent_pca_is_that_of_the_originals(tmp_path):
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([5.0, 2.0, 0.1, 0.1])
    originals = scales * torch.randn(200, 4, generator=generator) + 7
    center = originals.mean(0)
    generated = center + 0.5 * (originals[:50] - center) + torch.tensor([0.0, 0, 0, 1e-3])
    plot = plot_latent_pca({"original": originals, "generated": generated, "average_16": center[None]})
    svgs = draw_all(plot, tmp_path)
    explained = np.sort(np.linalg.eigvalsh(np.cov(originals.T.double().numpy())))[::-1]
    explained /= explained.sum()
    for svg in svgs.values():
        assert f"Component 1: {explained[0]:.0%} of" in svg and f"Component 2: {explained[1]:.0%}" in svg
    spread = (generated - center).square().sum(1).mean().sqrt() / (originals - center).square().sum(1).mean().sqrt()
    assert f"spread {spread:.2f} times" in plot.title
    drawn = plot.draw(False).axes[0].collections[0].get_offsets()
    assert drawn[:, 0].std() == pytest.approx(originals[:, 0].std(correction=0).item(), rel=0.01)


def test_iou_matrix_leaves_the_diagonal_out_of_its_means(tmp_path):
    iou = torch.full((5, 5), 0.25)
    iou[:3, :3], iou[3:, 3:] = 0.5, 0.75
    iou.fill_diagonal_(1)
    plot = plot_iou_matrix(iou, {"original": 3, "generated": 2})
    svgs = draw_all(plot, tmp_path)
    assert "original and original: 0.500; original and generated: 0.250; generated and generated: 0.750" in plot.alt
    assert all(text in svgs["narrow"] for text in (">0.50<", ">0.25<", ">0.75<"))


def test_ensembles_draw_every_size_and_the_best_single_network(result, tmp_path):
    plot = plot_ensembles(result.metrics.ensembles)
    draw_all(plot, tmp_path)
    mean = result.metrics.to_dict()["ensembles"]["generated"]["5"]["accuracy"]["mean"]
    assert f"generated with 5: accuracy {100 * mean:.2f} %" in plot.alt
    assert plot.title.startswith("Ensembles of 5: ")
    assert "best single network" in [entry.text for entry in plot.drawings()["wide"].legend]


def test_loss_curves_tell_where_they_end(tmp_path):
    log = tmp_path / "train_log.jsonl"
    log.write_text("".join(json.dumps({"step": s, "loss": 1 / (s + 1), "lr": 1e-3}) + "\n" for s in range(100)))
    plot = plot_loss_curves({"autoencoder": log, "diffusion": log})
    draw_all(plot, tmp_path)
    end = (1 / 98 + 1 / 99 + 1 / 100) / 3  # what lies under the half of the window that is left at the end
    assert f"{end:.3g} (autoencoder)" in plot.title
    assert plot.draw(False).axes[0].get_yscale() == "log"


@pytest.mark.parametrize("num_originals, num_generated", [(1, 1), (2, 1), (1, 4)])
def test_few_networks(num_originals, num_generated, tmp_path):
    few = evaluate(num_originals, num_generated)
    plots = [
        plot_accuracy_similarity(few.metrics, few.groups),
        plot_accuracy_histograms(few.metrics, few.groups),
        plot_iou_matrix(few.iou, few.iou_sizes),
        plot_ensembles(few.metrics.ensembles),
    ]
    for plot in plots:
        draw_quickly(plot, tmp_path)
    assert plot_latent_pca({"original": torch.randn(num_originals, 8), "generated": torch.randn(2, 8)}) is None


def test_identical_networks(tmp_path):
    same = evaluate(noise=0.0)
    for plot in (
        plot_accuracy_similarity(same.metrics, same.groups),
        plot_accuracy_histograms(same.metrics, same.groups),
        plot_iou_matrix(same.iou, same.iou_sizes),
        plot_latent_pca({"original": torch.ones(4, 8), "generated": torch.ones(2, 8)}),
        plot_ensembles(same.metrics.ensembles),
    ):
        draw_quickly(plot, tmp_path)


def test_numbers_that_do_not_exist(result, tmp_path):
    metrics = result.metrics.to_dict()
    unknown = torch.full((5,), math.nan)
    groups = {
        **result.groups,
        "generated": dataclasses.replace(result.groups["generated"], test_score=unknown, iou_max=unknown),
    }
    metrics["groups"]["generated"]["test_accuracy"]["mean"] = None
    metrics["groups"]["swag"]["similarity"]["iou_max_mean"] = None
    metrics["groups"]["gaussian"]["difference_to_original"]["ci95"] = None
    metrics["ensembles"]["generated"]["1"]["nll"] = {"mean": None, "ci95": None}
    iou = result.iou.clone()
    iou[0] = iou[:, 0] = math.nan
    for plot in (
        plot_accuracy_similarity(Metrics.from_dict(metrics), groups),
        plot_accuracy_histograms(Metrics.from_dict(metrics), groups),
        plot_iou_matrix(iou, result.iou_sizes),
        plot_ensembles(Metrics.from_dict(metrics).ensembles),
    ):
        draw_quickly(plot, tmp_path)


def test_nothing_is_drawn_of_nothing(result, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    metrics = result.metrics.to_dict()
    for group in metrics["groups"].values():
        group["similarity"]["iou_max_mean"] = None
    assert plot_accuracy_similarity(Metrics.from_dict(metrics)) is None
    assert plot_iou_matrix(torch.full((3, 3), math.nan), {"original": 3}) is None
    assert plot_latent_pca({}) is None
    assert plot_ensembles({}) is None and plot_ensembles({"generated": {}}) is None
    assert plot_loss_curves({}) is None and plot_loss_curves({"autoencoder": tmp_path / "empty.jsonl"}) is None
