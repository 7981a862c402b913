"""Figures of where networks lie: latent space, and the matrix of shared mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from ...evaluation.groups import label
from ...evaluation.summary import GroupEvaluation
from ...results.metrics import Metrics
from .networks import describe_networks
from .points import tag
from .style import Plot, color, handle, legend, new_figure, style


def plot_latent_pca(
    latents: Mapping[str, torch.Tensor],
    metrics: Metrics | None = None,
    groups: Mapping[str, GroupEvaluation] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Plot | None:
    """Latents `(n, C * L)` by group in the plane of the originals' first two principal components.

    With `metrics`, the page says of every network what `groups` know of it; `names` are what the networks are called.
    `None` for fewer than 3 originals.
    """
    latents = {name: values.double() for name, values in latents.items()}
    kept = {name: values.isfinite().all(1).nonzero()[:, 0] for name, values in latents.items()}
    latents = {name: values[kept[name]] for name, values in latents.items()}
    originals = latents.get("original", torch.empty(0, 0))
    if len(originals) < 3 or originals.shape[1] < 2:
        return None
    center = originals.mean(0)
    _, singular, components = torch.linalg.svd(originals - center, full_matrices=False)
    explained = (singular.square() / singular.square().sum().clamp_min(1e-30)).tolist()
    planes = {name: ((values - center) @ components[:2].T).numpy() for name, values in latents.items() if len(values)}
    distances = {name: (values - center).square().sum(1).mean().sqrt().item() for name, values in latents.items()}
    spreads = {name: distances[name] / max(distances["original"], 1e-30) for name in planes if name != "original"}

    # A few networks far out must not squeeze all others.
    everything = np.concatenate(list(planes.values()))
    limits = np.percentile(everything, [1, 99], axis=0).T
    limits += np.array([-0.15, 0.15]) * np.maximum(limits[:, 1:] - limits[:, :1], 1e-9)
    num_outside = int(((everything < limits[:, 0]) | (everything > limits[:, 1])).any(1).sum())

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = new_figure(narrow, 4.2 if narrow else 4.6)
        handles = {}
        for name, plane in planes.items():
            face, marker = style(name)
            cloud = axes.scatter(*plane.T, s=20, color=face, marker=marker, alpha=0.55, linewidths=0)
            tag(cloud, name, "networks")
            handles[name] = handle(name)
        axes.set_xlabel(f"Component 1: {explained[0]:.0%} of the originals' variance")
        axes.set_ylabel(f"Component 2: {explained[1]:.0%}")
        axes.set(xlim=limits[0], ylim=limits[1])
        legend(figure, handles, loc="outside lower center", ncols=2 if narrow else len(handles))
        return figure

    title = "The originals in latent space"
    if "generated" in spreads:
        title = f"In latent space generated networks spread {spreads['generated']:.2f} times as far as the originals"
    others = "; ".join(f"{label(name)} spread {value:.2f} times as far" for name, value in spreads.items())
    alt = f"Scatter plot of the first two principal components ({explained[0]:.0%} and {explained[1]:.0%} of the "
    alt += f"originals' variance) of {len(originals)} originals. {others}."
    note = "Principal components of the originals' latents. Spread: root mean square distance from the originals' "
    note += "mean over all components, in units of their own: "
    note += ", ".join(f"{label(name)} {value:.2f}" for name, value in spreads.items()) + "."
    note += f" {num_outside} of {len(everything)} networks lie beyond the edge." if num_outside else ""
    points = {
        ("networks", name): describe_networks(
            name, (groups or {}).get(name), metrics.metric, names or {}, kept[name].tolist()
        )
        for name in (planes if metrics is not None else ())
    }
    return Plot("latent_pca", title, alt, note, draw, points)


def plot_iou_matrix(iou: torch.Tensor, sizes: Mapping[str, int]) -> Plot | None:
    """IoU of wrong predictions `(m, m)` between networks of groups with these `sizes`, in consecutive blocks.

    `None` when nothing is known.
    """
    values = iou.double().numpy()
    known = np.where(np.eye(len(values), dtype=bool), np.nan, values)
    if not np.isfinite(known).any():
        return None
    bounds = np.cumsum([0, *sizes.values()])
    blocks = {name: slice(*bounds[i : i + 2]) for i, name in enumerate(sizes)}
    pairs = {(a, b): known[blocks[a], blocks[b]] for a in blocks for b in blocks}
    means = {pair: float(np.nanmean(part)) for pair, part in pairs.items() if np.isfinite(part).any()}

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = new_figure(narrow, 3.9 if narrow else 5.2)
        figure.set_layout_engine("compressed")
        lowest = np.floor(np.nanmin(known) * 20) / 20
        image = axes.imshow(values, cmap="cividis", vmin=min(lowest, 0.95), vmax=1, interpolation="nearest")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        for bound in bounds[1:-1]:
            axes.axhline(bound - 0.5, color="#fefefe", linewidth=1.5)
            axes.axvline(bound - 0.5, color="#fefefe", linewidth=1.5)
        middles = (bounds[:-1] + bounds[1:] - 1) / 2
        axes.set_xticks(middles, [label(name) for name in blocks])
        axes.set_yticks(middles, [label(name) for name in blocks], rotation=90, va="center")
        axes.tick_params(length=0)
        for (a, b), mean in means.items():
            x, y = (middles[list(blocks).index(name)] for name in (b, a))
            box = {"boxstyle": "round,pad=0.25", "facecolor": "#101418", "alpha": 0.75, "linewidth": 0}
            options = {"ha": "center", "va": "center", "fontsize": 11, "fontweight": "bold", "bbox": box}
            axes.text(x, y, f"{mean:.2f}", color="#fefefe", **options)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=color("muted"), labelcolor=color("text"), labelsize=8.5)
        return figure

    title = "Which networks make the same mistakes"
    if (between := means.get(("generated", "original"))) is not None:
        title = f"Shared mistakes (IoU): generated with originals {between:.2f}"
        among = means.get(("original", "original"))
        title += f", originals with each other {among:.2f}" if among is not None else ""
    order = list(blocks)
    once = {(a, b): mean for (a, b), mean in means.items() if order.index(a) <= order.index(b)}
    alt = "; ".join(f"{label(a)} and {label(b)}: {mean:.3f}" for (a, b), mean in once.items())
    counts = ", ".join(f"{size} {label(name)}" for name, size in sizes.items())
    note = (
        f"IoU of the wrong predictions of every pair ({counts}); the numbers are means of pairs of different networks."
    )
    return Plot("iou_matrix", title, f"Matrix. Mean IoU of {alt}.", note, draw)
