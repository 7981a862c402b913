"""What a report tells after its verdict, section by section, for every form in which it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..results.metrics import INTERVALS, SEED_INTERVALS
from ..results.text import MISSING, ReportTable, Section, name_examples, number, percent, points, signed

PROTOCOL = (
    "Three disjoint sets of images: networks are trained on the first, anything chosen (the best network of a group, "
    "the greedy soup) is chosen on the second, val, and everything reported is measured on the third, test.",
    "Every group goes through the same evaluation. Baselines have as many draws as the generator; soups are one "
    "network.",
    "Originals are compared with the other originals, never with themselves.",
    "The verdict follows from the intervals: a difference counts when its interval excludes zero.",
)


def make_sections(metrics: Mapping, gate: Mapping | None, plots: Sequence[str]) -> list[Section]:
    """Make the sections of a report; what `metrics` does not know is left out.

    Args:
        metrics (`Mapping`): Content of `metrics.json`.
        gate (`Mapping`, *optional*): Reconstruction figures of the autoencoder (`reconstruction.json`).
        plots (`Sequence[str]`): Names of the figures that there are.
    """
    intervals = SEED_INTERVALS if "seeds" in metrics else INTERVALS
    sections = [
        _groups(metrics),
        _novelty(metrics),
        _comparisons(metrics),
        _ensembles(metrics),
        _calibration(metrics),
        _cost(metrics),
        _training(gate),
        Section("How they come out of noise", plots=["trajectory", "trajectory_plane"]),
        _seeds(metrics),
        Section("How it was measured", [*PROTOCOL, *_left_out(metrics), intervals], bullets=True),
    ]
    for section in sections:
        section.plots = [name for name in section.plots if name in plots]
        section.text = [name_examples(text, metrics.get("task")) for text in section.text]
    return [section for section in sections if section.text or section.plots or section.tables]


def _left_out(metrics: Mapping) -> list[str]:
    groups = metrics["groups"]
    is_own = "generated" in groups and groups["generated"].get("cost", {}).get("seconds") is not None
    if not is_own or "fine_tuned" in groups:
        return []
    return [
        "One baseline was left out: fine-tuning for as long as the generator took. `pdiff evaluate RUN --fine-tune` "
        "adds it."
    ]


def _groups(metrics: Mapping) -> Section:
    rows, intervals = [], []
    for name, group in metrics["groups"].items():
        accuracy, selected, difference = group["test_accuracy"], group["selected"], group["difference_to_original"]
        minus = points(difference["difference"], difference["ci95"])
        rows.append(
            (
                name,
                MISSING if name == "original" else minus,
                percent(accuracy["mean"], accuracy["ci95"], unit=""),
                percent(selected["test_accuracy"], selected["test_ci95"], unit=""),
                number(accuracy["std"] and 100 * accuracy["std"], ".2f"),
                str(group["n"]),
            )
        )
        is_known = name != "original" and difference["ci95"] is not None
        intervals.append((difference["difference"], *difference["ci95"]) if is_known else None)
    columns = ("group", "minus originals, points (95 %)", "mean, % (95 %)", "best on val, % (95 %)", "std", "networks")
    table = ReportTable(columns, rows, "Test accuracy", intervals)
    text = f"{metrics['num_parameters']:,} generated parameters, {metrics['num_test']:,} test images. The best "
    text += "network of a group is chosen on the val images; everything is reported on the test images."
    return Section("Are they good?", [text], ["accuracy_similarity", "accuracy_histograms"], [table])


def _novelty(metrics: Mapping) -> Section:
    groups = metrics["groups"]
    yardstick = groups["original"]["similarity"]["l2_nearest_mean"]
    text = [
        "IoU of wrong predictions: 1 means the same mistakes. Within: between networks of a group. Nearest: the "
        "original that is most alike."
    ]
    if yardstick is None:
        text += ["With one original there is no distance among originals to compare with."]
    else:
        text += [
            f"The yardstick: an original is {yardstick:.4g} from its nearest other original on average. A network is "
            "novel at 2x when it is farther than twice that from every original, a copy when it is closer than a "
            "third of it, and performant when its test accuracy is not below the originals' mean."
        ]
    distances = [_similarity_row(name, group, yardstick) for name, group in groups.items()]
    titles = ("group", "IoU within", "IoU to nearest (95 %)", "L2 to nearest (95 %)")
    titles += ("in yardsticks", "after matching", "cosine distance", "spread")
    # Columns of which nothing is known are left out.
    kept = [i for i in range(len(titles)) if any(row[i] != MISSING for row in distances)]
    similarity = ReportTable([titles[i] for i in kept], [[row[i] for i in kept] for row in distances], "Similarity")
    if "spread" in similarity.columns:
        text += [
            "Spread: distance from the originals' mean, in units of the originals' own; averages of 16 independent "
            "networks have 0.25."
        ]
    if "after matching" in similarity.columns:
        text[-1] += " After matching: L2 with the hidden units permuted so that they fit best."
    tables = [similarity]
    if yardstick is not None:
        tables.append(_novelty_table(groups))
    return Section("Are they new?", text, ["iou_matrix", "latent_pca"], tables)


def _similarity_row(name: str, group: Mapping, yardstick: float | None) -> list[str]:
    similarity = group["similarity"]
    intervals = similarity.get("ci95", {})
    nearest, cosine = similarity["l2_nearest_mean"], similarity.get("cosine_nearest_mean")
    return [
        name,
        number(similarity["iou_mean"], ".3f"),
        number(similarity["iou_max_mean"], ".3f", intervals.get("iou_max_mean")),
        number(nearest, ".3g", intervals.get("l2_nearest_mean")),
        number(nearest / yardstick if nearest is not None and yardstick else None, ".3g"),
        number(similarity.get("l2_matched_mean"), ".3g", intervals.get("l2_matched_mean")),
        number(None if cosine is None else max(0.0, 1 - cosine), ".2g"),
        number(group.get("spread"), ".2f"),
    ]


def _novelty_table(groups: Mapping) -> ReportTable:
    rows = []
    for name, group in groups.items():
        scores = group["novel_and_performant"]
        intervals = scores.get("ci95", {})
        joint = [_share(scores["joint"]["1x"], intervals.get("joint", {}).get("1x"))]
        joint += [_share(value) for key, value in scores["joint"].items() if key != "1x"]
        rows.append(
            (
                name,
                _share(scores["performant"], intervals.get("performant")),
                " / ".join(map(_share, scores["novel"].values())),
                " / ".join(joint),
                _share(scores.get("copied")),
            )
        )
    multiples = " / ".join(groups["original"]["novel_and_performant"]["novel"])
    columns = ("group", "performant (95 %)", f"novel at {multiples}", f"both at {multiples} (95 %)", "copies")
    return ReportTable(columns, rows, "Shares of the networks, %")


def _comparisons(metrics: Mapping) -> Section:
    means, chosen = metrics.get("comparisons", {}), metrics.get("selected_comparisons", {})
    if not means:
        return Section("")
    has_test = any("p_value" in value for value in chosen.values())
    columns = ["generated minus", "means, points (95 %)"]
    columns += ["best on val, points (95 %)"] if chosen else []
    columns += ["p (McNemar)", "only generated right", "only the other right"] if has_test else []
    rows, intervals = [], []
    for name, comparison in means.items():
        row = [name, points(comparison["difference"], comparison["ci95"])]
        if chosen:
            best = chosen.get(name, {})
            row.append(points(best.get("difference"), best.get("ci95")))
        if has_test:
            row.append(number(best.get("p_value"), ".3f"))
            row += [number(best.get(key), "d") for key in ("only_generated", "only_other")]
        rows.append(row)
        intervals.append((comparison["difference"], *comparison["ci95"]) if comparison["ci95"] else None)
    text = ["The generated networks against every other group, image by image."]
    if has_test:
        text[0] += " The best on val are compared by McNemar's exact test on the images that only one gets right."
    return Section("Generated against the others", text, tables=[ReportTable(columns, rows, "Differences", intervals)])


def _ensembles(metrics: Mapping) -> Section:
    rows = []
    for name, sizes in metrics.get("ensembles", {}).items():
        for size, scores in sizes.items():
            accuracy, nll, ece = scores["accuracy"], scores["nll"], scores["ece"]
            rows.append(
                (
                    name,
                    size,
                    percent(accuracy["mean"], accuracy["ci95"], unit=""),
                    number(nll["mean"], ".4f", nll["ci95"]),
                    number(ece["mean"], ".4f", ece["ci95"]),
                )
            )
    if not rows:
        return Section("")
    text = ["Averaging the probabilities of M networks, which costs M times the inference of one."]
    columns = ("group", "M", "accuracy, % (95 %)", "NLL (95 %)", "ECE (95 %)")
    table = ReportTable(columns, rows, "All ensembles", folded=True)
    return Section("Do they help each other? Ensembles", text, ["ensembles"], [table])


def _calibration(metrics: Mapping) -> Section:
    rows = []
    for name, group in metrics["groups"].items():
        nll, ece = group["test_nll"], group["test_ece"]
        rows.append((name, number(nll["mean"], ".4f", nll.get("ci95")), number(ece["mean"], ".4f", ece.get("ci95"))))
    text = ["Means over the networks. ECE: expected calibration error with 15 equal bins; lower is better."]
    table = ReportTable(("group", "NLL (95 %)", "ECE (95 %)"), rows, "Calibration")
    return Section("Calibration", text, tables=[table])


def _cost(metrics: Mapping) -> Section:
    tables, text = [], []
    rows = []
    for name, group in metrics["groups"].items():
        cost, gain = group.get("cost") or {}, group["difference_to_original"]
        if cost.get("seconds") is not None:
            per_second = cost.get("gain_per_second")
            # Two digits, and no exponent for large numbers.
            rate = MISSING if per_second is None else signed(float(f"{100 * per_second:.2g}"), "g")
            rows.append((name, _seconds(cost["seconds"]), points(gain["difference"], gain["ci95"]), rate))
    if rows:
        text = [
            "What making the networks of a group takes once the checkpoints are there, and the gain in mean accuracy "
            "over the originals that this buys. For the generated ones: autoencoder, diffusion and drawing."
        ]
        columns = ("group", "seconds", "gain, points (95 %)", "points per second")
        tables.append(ReportTable(columns, rows, "Gain per second"))
    if metrics.get("timings_s"):
        memory = metrics.get("peak_rss_mb") or {}
        rows = [
            (stage, f"{seconds:.1f}", number(memory.get(stage), ".0f"))
            for stage, seconds in metrics["timings_s"].items()
            if seconds is not None
        ]
        tables.append(ReportTable(("stage", "seconds", "peak memory (MB)"), rows, "Stages of the run", folded=True))
    return Section("What it costs", text, tables=tables)


def _seeds(metrics: Mapping) -> Section:
    if "seeds" not in metrics:
        return Section("")
    rows = [
        (name, *(percent(value, unit="") for value in group["test_accuracy"].get("per_seed", ())))
        for name, group in metrics["groups"].items()
    ]
    columns = ("group", *(f"seed {seed}" for seed in metrics["seeds"]))
    return Section("Seed by seed", tables=[ReportTable(columns, rows, "Mean test accuracy, %")])


def _training(gate: Mapping | None) -> Section:
    text = []
    if gate:
        explained = percent(gate["explained_variance"])
        text = [f"The autoencoder explains {explained} of the variance of held-out checkpoints"]
        if "accuracy_drop" in gate:
            text[0] += f"; reconstruction loses {100 * max(gate['accuracy_drop'], 0):.2f} points of accuracy"
        text[0] += "."
    return Section("Training", text, ["loss_curves"])


def _share(value: float | None, interval: Sequence[float] | None = None) -> str:
    return percent(value, interval, digits=0, unit="")


def _seconds(value: float) -> str:
    return "< 0.01" if value < 0.01 else f"{value:.2f}" if value < 10 else f"{value:.0f}"
