"""Advice before training, from the figures of an inspection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...models.auto import AUTOENCODER, DENOISER
from ...models.few_rows import MIN_ROWS, fit_to_rows
from ...results.text import by_kind
from .actions import actions_for, functional_action, functional_settings, needs_functions, train_command
from .families import MAX_RELATIVE_DISTANCE
from .functional import MAX_BARRIER

SEVERITIES = ("stop", "warning", "hint")

# From fewer independent networks no distribution can be learned.
MIN_EFFECTIVE_ROWS = 10
MAX_CONSTANT_SHARE = 0.1
DEFAULTS = AUTOENCODER.validate({})


def make_advice(report: Mapping) -> list[dict[str, str]]:
    """Derive advice from the report of [`inspect_dataset`].

    Returns:
        `list[dict[str, str]]`: `severity` (`"stop"`, `"warning"` or `"hint"`, in this order), `finding` with its
        figures, and `action`.
    """
    found = [*_values(report)]
    if report["geometry"] is not None:
        found += [*_families(report), *_basins(report), *_autoencoder(report), *_independence(report)]
        found += [*_diversity(report), *_averaging(report)]
    advice = [dict(zip(("severity", "finding", "action"), entry, strict=True)) for entry in found]
    return sorted(advice, key=lambda entry: SEVERITIES.index(entry["severity"]))


def _values(report: Mapping):
    non_finite, num_rows, copied = report["non_finite"], report["num_rows"], report["copies"]
    actions = actions_for(report)
    if non_finite["rows"]:
        yield (
            "stop",
            f"{len(non_finite['rows'])} of {num_rows} checkpoints hold NaN, infinite or absurdly large values, in "
            f"{_names(list(non_finite['tensors']))}; training refuses them. The figures are of the others.",
            f"{actions['drop'].format(rows=_ranges(non_finite['rows']))}; the cause is often a learning rate that is "
            "too high.",
        )
    if report["geometry"] is None:
        yield "stop", f"There are {num_rows - len(non_finite['rows'])} finite checkpoints.", f"{actions['more']}."
        return
    copies = [row for rows in copied["duplicate_rows"] for row in rows[1:]]
    if copies:
        yield (
            "warning",
            f"{len(copies)} checkpoints are exact copies of others; they count double, and held-out copies flatter "
            "the gate.",
            f"{actions['drop'].format(rows=_ranges(sorted(copies)))}.",
        )
    if copied["constant_tensors"]:
        yield (
            "warning",
            f"{len(copied['constant_tensors'])} of {report['num_tensors']} tensors never change: "
            f"{_names(copied['constant_tensors'])}. There is nothing to learn about them.",
            f"{_sentence(actions['select'])}, or train these on as well.",
        )
    elif copied["num_constant_parameters"] > MAX_CONSTANT_SHARE * report["num_parameters"]:
        share = copied["num_constant_parameters"] / report["num_parameters"]
        yield (
            "hint",
            f"{share:.0%} of the parameters never change, such as those of dead units.",
            f"They are reproduced exactly; training is faster where you {actions['select']}.",
        )
    for names in copied["duplicate_tensors"]:
        yield (
            "warning",
            f"The tensors {_names(names)} are equal in every checkpoint, like tied ones; generated ones will differ.",
            f"Keep one of them: {actions['select']}.",
        )
    everywhere = set(copied["constant_tensors"])
    partly = {run: [n for n in e["constant_tensors"] if n not in everywhere] for run, e in report["runs"].items()}
    if frozen := {run: names for run, names in partly.items() if names}:
        run, names = next(iter(frozen.items()))
        yield (
            "warning",
            f"In {len(frozen)} of {len(partly)} runs tensors never change that differ between runs, such as "
            f"{_names(names)} in {run}.",
            f"{_sentence(actions['select'])}, or train these on in every run.",
        )


def _families(report: Mapping):
    families, norm = report["families"], report["geometry"]["distances"]["median_norm"]
    if families is None:
        return
    rows, alone = families["rows"], families["alone"]
    within, between = f"{families['within']:.3g}", f"{families['between']:.3g}"
    if alone:
        who = "Row {} belongs" if len(alone) == 1 else "Rows {} belong"
        yield (
            "warning",
            f"{who.format(_ranges(alone))} to no others: at least {between} away from all, which are at most {within} "
            f"apart (the norm is {norm:.3g}), most of it in {_names(list(dict.fromkeys(families['tensors'])))}.",
            f"{actions_for(report)['drop'].format(rows=_ranges(alone))}.",
        )
    if len(rows) < 2:
        return
    files = families["files"]
    names = [f"rows {_ranges(of)}" + (f" ({' … '.join(files[n])})" if files else "") for n, of in enumerate(rows)]
    listed = " and ".join(names) if len(rows) == 2 else _names(names, 4)
    barrier = families["barrier"]
    rise = "" if barrier is None else f"; on the way the error rises by {_points(barrier)} points or more"
    is_ordered = all(entry["is_ordered"] for entry in report["runs"].values())
    steps = " If they are one training after all, say their steps (pdiff import … --metrics-pattern …)."
    yield (
        "warning" if barrier is None or functional_settings(report) else "stop",
        f"The checkpoints are {len(rows)} families, as of networks that started at different ones: {listed}. Within "
        f"one, neighbours are at most {within} apart, between them at least {between} (the norm is {norm:.3g}){rise}.",
        f"Train on one family alone, or {functional_action(report)}."
        f"{steps if report['origin'] == 'import' and not is_ordered else ''}",
    )


def _basins(report: Mapping):
    distances, functional = report["geometry"]["distances"], report["functional"]
    left_out = report["geometry"]["reconstruction"]["left_out_run"]
    cause = (
        "the default autoencoder will not reconstruct networks that it was not trained on: hidden units of "
        "independently initialised ones come in different orders (permutation symmetry), so their vectors have no "
        "common directions"
    )
    is_possible = bool(functional_settings(report))
    action = f"{_sentence(functional_action(report))}."
    if not is_possible:
        action = f"{actions_for(report)['one_run']}, or {functional_action(report)}."
    unseen = "" if left_out is None else f" Principal components of the others explain {left_out:.0%} of a run."
    if functional is None:
        norm = distances["median_norm"]
        for kind, where in (("nearest_in_other_runs", "in another run"), ("nearest", "in the dataset")):
            if distances[kind] is not None and distances[kind]["median"] > MAX_RELATIVE_DISTANCE * norm:
                yield (
                    "warning",
                    f"The nearest network {where} is {distances[kind]['median']:.3g} away, the norm is {norm:.3g}: "
                    f"these look like independently trained networks. If so, {cause}.{unseen}",
                    action,
                )
                return
        return
    for kind, subject in (("between_runs", "The runs lie"), ("within_runs", "The checkpoints of a run lie")):
        if functional[kind] is None or functional[kind]["mean"] <= MAX_BARRIER:
            continue
        inner = functional["within_runs"]
        inside = f", by {_points(inner['mean'])} within a run" if kind == "between_runs" and inner else ""
        later = (
            "" if is_possible or kind == "between_runs" else " Within one run: begin later, or train at a lower rate."
        )
        yield (
            "warning" if is_possible else "stop",
            f"{subject} in different basins: on the straight line between two of them the error rises by "
            f"{_points(functional[kind]['mean'])} points{inside}. {_sentence(cause)}."
            f"{unseen if kind == 'between_runs' else ''}",
            f"{action}{later}",
        )
        return


def _diversity(report: Mapping):
    diversity = report["functional"] and report["functional"]["diversity"]
    if not diversity or report["geometry"]["rank"] == 0:
        return
    often, num = diversity["disagreement"], diversity["num_images"]
    if diversity["kind"] == "one_function":
        yield (
            "warning",
            f"All networks compute the same, as far as {num} examples tell: two of them differ on {often * num:.2g} "
            "on average. There is no functional diversity to be learnt.",
            f"{actions_for(report)['diverse']}.",
        )
    elif diversity["kind"] == "path" and (report["geometry"]["effective_rows"] or 0) < MIN_EFFECTIVE_ROWS:
        yield (
            "hint",
            f"What the networks compute is a path: those next to each other differ on {diversity['steps']:.2%} of the "
            f"examples, any two on {often:.2%}. Functional diversity that a generator could learn is not in it.",
            f"{actions_for(report)['diverse']}.",
        )


def _autoencoder(report: Mapping):
    """What the default autoencoder needs; where another one has to be taken, no more than that needs as well."""
    geometry, actions = report["geometry"], actions_for(report)
    reconstruction, num_rows = geometry["reconstruction"], report["num_rows"]
    if num_rows < MIN_ROWS:
        yield "stop", f"{num_rows} checkpoints are too few to learn from, {MIN_ROWS} are the fewest.", actions["more"]
        return
    fitted, denoiser, lines = fit_to_rows(DEFAULTS, DENOISER.validate({}), num_rows)
    latents = fitted.num_latents
    most = min(denoiser.most_latents(reconstruction["num_train"]), geometry["rank"])
    if geometry["rank"] == 0:
        yield "stop", "All checkpoints are equal.", "Take checkpoints while the selected tensors are being trained."
        return
    if lines and not (needs_functions(report) and report["functional"]):
        yield "hint", " ".join(lines), f"{actions['more']}, or train all the same: {train_command(report)}."
    if needs_functions(report):
        return
    gate = report["gate"]
    if most < latents:
        channels = max(most, 0) // fitted.latent_length
        setting = train_command(report, f"autoencoder.latent_channels={channels}")
        fewer = f", or take a smaller latent: {setting} ({channels} × {fitted.latent_length} values)"
        yield (
            "stop",
            f"The default latent of {latents} values is too large: {reconstruction['num_train']} training checkpoints "
            f"of rank {geometry['rank']}, some of which choose the denoiser's step, are enough for {max(most, 0)}.",
            f"{actions['more']}{fewer if channels else ''}.",
        )
    elif gate["will_pass"] is False:
        yield (
            "warning",
            f"{latents} components of the training checkpoints explain {gate['explained_variance']:.1%} of the "
            f"held-out ones ({by_kind(gate['explained_by_kind'])}), the gate asks for "
            f"{gate['min_explained_variance']:.0%} of each kind of tensor; 99 % of the variance needs "
            f"{geometry['num_components_99']} of {report['num_rows']}. The checkpoints lie in more directions than "
            "they are many enough to show.",
            f"It takes {actions['closer']}.",
        )
    enough = 1 << (2 * geometry["num_components_99"] - 1).bit_length()
    # Between basins, a few directions from one to the other hold most of the variance.
    many = report["functional"] is not None and report["functional"]["basins"] == "many"
    if not many and DEFAULTS.latent_length <= enough < latents <= most:
        channels = enough // DEFAULTS.latent_length
        yield (
            "hint",
            f"{geometry['num_components_99']} components hold 99 % of the variance (effective rank "
            f"{geometry['effective_rank']:.0f}); the default latent has {latents} values.",
            f"A smaller one will do: {train_command(report, f'autoencoder.latent_channels={channels}')} ({channels} × "
            f"{DEFAULTS.latent_length} values).",
        )
    fast, pca = report["autoencoders"]["fast"], report["autoencoders"]["pca"]
    if not fast["fits"]:
        other = train_command(report, "autoencoder.kind=pca") if pca["fits"] else _sentence(actions["select"])
        yield (
            "stop",
            f"The default autoencoder needs {fast['bytes']['total'] / 2**30:.1f} GiB, "
            f"{fast['free_bytes'] / 2**30:.1f} are free.",
            f"{other}.",
        )


def _independence(report: Mapping):
    effective = report["geometry"]["effective_rows"]
    if effective is None or effective >= MIN_EFFECTIVE_ROWS:
        return
    longest = max(entry["autocorrelation_time"] or 0 for entry in report["runs"].values())
    yield (
        "warning",
        f"{report['num_rows']} checkpoints count like {effective:.1f} independent ones: correlations last "
        f"{longest:.0f} checkpoints. A generator sees little more than the path from the first to the last.",
        f"{actions_for(report)['more_independent']}.",
    )


def _averaging(report: Mapping):
    functional = report["functional"]
    if functional is None:
        return
    averaging = functional["averaging"]
    named = {"the uniform soup": averaging["uniform_soup"], "averages of 16": averaging["average_16"]}
    name, best = max(named.items(), key=lambda item: item[1]["difference"])
    if best["ci95"][0] <= 0:
        return
    yield (
        "hint",
        f"Averaging alone gains {_points(best['difference'])} points ({_points(best['ci95'][0])} to "
        f"{_points(best['ci95'][1])}): {name} {best['accuracy']:.2%}, originals {averaging['original_accuracy']:.2%}.",
        "Try a soup first, and compare generated networks with averages rather than with originals.",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if abs(fraction) < 0.1 else f"{100 * fraction:.0f}"


def _names(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _ranges(rows: Sequence[int]) -> str:
    """Ascending rows as `0-4, 7, 9-12`, ten ranges at most."""
    spans: list[list[int]] = []
    for row in rows:
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    return _names([f"{first}" if first == last else f"{first}-{last}" for first, last in spans], 10)
