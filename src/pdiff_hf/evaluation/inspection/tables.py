"""The report of an inspection in the terminal: the figures, what an autoencoder costs, and the advice last."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...conditions import conditions_text
from ...results.metric import Metric
from ...results.text import by_kind
from .actions import missing_for_functions, needs_functions
from .gauge import gauge_text

STYLES = {"stop": "bold red", "warning": "bold yellow", "hint": "bold cyan"}


def make_tables(report: Mapping) -> RenderableType:
    """Make what the terminal shows of the report of [`inspect_dataset`]."""
    runs = len(report["runs"])
    head = (
        f"{report['num_rows']} checkpoints of {report['num_parameters']:,} parameters in {report['num_tensors']} "
        f"tensors, {runs} run{'s' if runs > 1 else ''}, base model {report['base_model'] or 'unknown'}"
    )
    if (examined := report["num_examined"]) is not None and examined < report["num_rows"]:
        head += f"; figures of {examined} of them, evenly from every run"
    parts: list[RenderableType] = [Text(head, style="bold"), _figures(report)]
    if report["autoencoders"] is not None:
        parts.append(_autoencoders(report["autoencoders"]))
    return Group(*[Padding(part, (0, 0, 1, 0)) for part in parts], _advice(report))


def _figures(report: Mapping) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    table.add_row("values", _values(report))
    if report["conditions"] is not None:
        table.add_row("conditions", escape(conditions_text(report["conditions"])))
    if report.get("gauge") is not None:
        table.add_row("gauge", escape(gauge_text(report["gauge"])))
    geometry, functional = report["geometry"], report["functional"]
    if geometry is None:
        return table
    shares = geometry["explained_variance"]
    table.add_row(
        "directions",
        f"{' / '.join(shares)} components hold {' / '.join(f'{100 * x:.3g}' for x in shares.values())} % of the "
        f"variance, {geometry['num_components_99']} hold 99 %; effective rank {geometry['effective_rank']:.1f}",
    )
    reconstruction = geometry["reconstruction"]
    parts = [
        f"{reconstruction[key]:.1%} of {what}"
        for key, what in (("heldout", "the gate's held-out rows"), ("left_out_run", "a run that was left out"))
        if reconstruction[key] is not None
    ]
    if parts:
        gate = report["gate"]
        asked = f"; the gate asks for {gate['min_explained_variance']:.0%} of each kind of tensor"
        if gate["explained_by_kind"]:
            asked += f": {by_kind(gate['explained_by_kind'])}"
        table.add_row("reconstruction", f"a linear autoencoder explains {' and '.join(parts)}{asked}")
    times = [entry["autocorrelation_time"] for entry in report["runs"].values() if entry["autocorrelation_time"]]
    if geometry["effective_rows"] is None:
        independence = "not measured: no steps or epochs are known"
    else:
        shortest, longest = min(times), max(times)
        time = f"{longest:.0f}" if round(shortest) == round(longest) else f"{shortest:.0f} to {longest:.0f}"
        effective = f"{geometry['effective_rows']:.1f} effective checkpoints"
        independence = f"{effective}; autocorrelation time {time} checkpoints"
    table.add_row("independence", independence)
    distances = geometry["distances"]
    texts = [
        f"{distances[key]['median']:.3g} ({distances[key]['min']:.3g} to {distances[key]['max']:.3g}){where}"
        for key, where in (("nearest", ""), ("nearest_in_other_runs", " in another run"))
        if distances[key] is not None
    ]
    table.add_row("nearest", f"L2 {', '.join(texts)}; norm {distances['median_norm']:.3g}")
    if (score := report["score"]) is not None:
        metric = Metric.model_validate(score["metric"])
        ends = (metric.write(score[key]) for key in ("mean", "min", "max", "uniform_soup"))
        table.add_row(metric.name, "{} ({} to {}), soup of all {}; ".format(*ends) + f"{metric.direction}")
        table.add_row("diversity", "not measured: a function gives a score, and no predictions")
        return table
    if functional is None:
        table.add_row("barrier", "not measured: no base model, or no examples")
        table.add_row("averaging", "not measured")
        table.add_row("diversity", _not_compared(report))
        return table
    texts = [
        f"{100 * functional[kind]['mean']:.1f} points {kind.replace('_', ' ')} "
        f"(max {100 * functional[kind]['max']:.1f}, {functional[kind]['num_pairs']} pairs)"
        for kind in ("within_runs", "between_runs")
        if functional[kind] is not None
    ]
    basins = {"one": "one basin", "many": "many basins"}[functional["basins"]]
    table.add_row("barrier", f"{', '.join(texts)}: [bold]{basins}[/]")
    averaging = functional["averaging"]
    texts = [
        f"{name} {100 * averaging[key]['difference']:+.2f} "
        f"({' to '.join(f'{100 * end:+.2f}' for end in averaging[key]['ci95'])})"
        for key, name in (("uniform_soup", "soup"), ("average_16", "16 averaged"))
    ]
    table.add_row(
        "averaging", f"{', '.join(texts)} points over originals, {averaging['original_accuracy']:.2%} on val"
    )
    table.add_row("diversity", _diversity(functional["diversity"]))
    return table


def _not_compared(report: Mapping) -> str:
    missing = missing_for_functions(report)
    return f"not measured: no {' and no '.join(missing)}" if missing else "not measured: no examples"


def _diversity(diversity: Mapping | None) -> str:
    """What two networks do differently, along how many components, and how many latents these take."""
    if diversity is None:
        return "not measured: outputs are not finite"
    steps = "" if diversity["steps"] is None else f", consecutive ones on {diversity['steps']:.2%}"
    texts = [
        f"two networks differ on {diversity['disagreement']:.2%} of the examples{steps}",
        f"{diversity['num_components_90']} / {diversity['num_components_99']} components hold 90 / 99 % of what they "
        "compute differently",
    ]
    if (latents := diversity["latent_channels"]) is not None:
        share = diversity["heldout"][str(latents)]
        texts.append(f"{latents} of the others explain {share:.0%} of held-out ones: [bold]{latents} latents[/]")
    if diversity["kind"] == "one_function":
        texts.append("[bold]nothing to be learnt[/]")
    return "; ".join(texts)


def _values(report: Mapping) -> str:
    non_finite, copies = report["non_finite"], report["copies"]
    texts = [f"{len(non_finite['rows'])} checkpoints not finite" if non_finite["rows"] else "all finite"]
    if copies is not None:
        share = copies["num_constant_parameters"] / report["num_parameters"]
        counts = (
            (len(copies["constant_tensors"]), "constant tensors"),
            (sum(len(rows) - 1 for rows in copies["duplicate_rows"]), "copied checkpoints"),
            (sum(len(names) - 1 for names in copies["duplicate_tensors"]), "copied tensors"),
        )
        texts += [f"{count or 'no'} {what}" for count, what in counts]
        texts += [f"{share:.1%} of the parameters constant"] if share else []
    return ", ".join(texts)


def _autoencoders(autoencoders: Mapping) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("autoencoder")
    for column in ("parameters", "memory", "time"):
        table.add_column(column, justify="right")
    for name, cost in autoencoders.items():
        seconds, memory = cost["seconds"], _size(cost["bytes"]["total"])
        if not cost["fits"]:
            memory = f"[red]{memory}, does not fit into {_size(cost['free_bytes'])}[/]"
        if seconds is None:
            time = "-"
        elif seconds < 600:
            time = f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
        else:
            time = f"{seconds / 60:.0f} min"
        table.add_row(name, f"{cost['num_parameters']:,}", memory, time)
    return table


def _advice(report: Mapping) -> Table:
    advice = report["advice"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    if needs_functions(report):
        warning = "Train on it with --set autoencoder.kind=functional; the default autoencoder makes nothing of it."
    elif report["gate"] is not None and report["gate"]["will_pass"] is False:
        warning = "The gate is likely to refuse it as it is."
    else:
        warning = "It can be trained on; read the warnings first."
    # The worst comes first.
    verdict = {
        "stop": "[bold red]Do not train on this dataset as it is.[/]",
        "warning": f"[bold yellow]{warning}[/]",
    }.get(advice[0]["severity"] if advice else "", "[bold green]Nothing stands in the way.[/]")
    table.add_row("[bold]advice[/]", verdict)
    for entry in advice:
        text = f"{escape(entry['finding'])} [bold]→ {escape(entry['action'])}[/]"
        table.add_row(Text(entry["severity"], style=STYLES[entry["severity"]]), text)
    return table


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"
