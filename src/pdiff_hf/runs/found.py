"""What a stage has found, in a few words, read from the folder that it has written."""

from __future__ import annotations

from pathlib import Path

from ..files import read_json
from ..results.metrics import METRICS_FILE, Metrics, read_denoiser
from .folder import GATE_FILE, Run


def found_by(run: Run, stage: str) -> str:
    """A few words for a table; empty where there is nothing to say, or the stage has written nothing yet.

    Of the collection the number of checkpoints and their mean test accuracy, of the autoencoder the gate, of the
    denoiser its loss on checkpoints that it has not seen beside that of the Gaussian of all others, of the evaluation
    the scores.
    """
    path, words = run.path(stage), _WORDS.get(stage)
    return words(path) if words is not None and path.is_dir() else ""


def _collected(path: Path) -> str:
    if not (path / "stats.json").is_file():
        return ""
    stats = read_json(path / "stats.json")
    accuracy = stats["columns"].get("test_accuracy", {}).get("mean")
    return f"{stats['num_rows']} checkpoints" + ("" if accuracy is None else f", accuracy {accuracy:.2%}")


def _gate(path: Path) -> str:
    if not (path / GATE_FILE).is_file():
        return ""
    gate = read_json(path / GATE_FILE)
    verdict = "passed" if gate.get("passed") else "missed"
    return f"gate {verdict}: {gate['explained_variance']:.1%} explained"


def _losses(path: Path) -> str:
    # The first of them is the one that chose the step: rows between those that were trained on.
    for loss in read_denoiser(path).held_out.values():
        return f"loss on unseen {loss.loss:.3f}, Gaussian's {loss.gaussian:.3f}"
    return ""


def _generated(path: Path) -> str:
    index = path / "index.json"
    return f"{len(read_json(index)['files'])} networks" if index.is_file() else ""


def _scores(path: Path) -> str:
    if not (path / METRICS_FILE).is_file():
        return ""
    metrics = Metrics.read(path / METRICS_FILE)
    if metrics.tasks is not None:
        scores = {name: group.accuracy for name, group in metrics.tasks.unseen.items()}
    else:
        scores = {n: g.score.mean for n, g in metrics.groups.items() if n in ("original", "generated", "gaussian")}
    return ", ".join(f"{name} {score:.4g}" for name, score in scores.items() if score is not None)


_WORDS = {
    "collect": _collected,
    "autoencoder": _gate,
    "diffusion": _losses,
    "generate": _generated,
    "fine_tune": _generated,
    "evaluate": _scores,
}
