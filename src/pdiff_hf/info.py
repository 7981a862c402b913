"""What an artefact folder is, read from its small files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import read_json
from .run_folder import GATE_FILE, RECIPE_FILE, STAGES, Run


def describe(path: str | Path) -> dict[str, Any]:
    """Describe a run, parameter dataset, autoencoder, pipeline, generated or report folder.

    Raises:
        ValueError: the folder is none of these.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"expected a folder, {path} does not exist or is a file.")
    if (path / RECIPE_FILE).is_file():
        run = Run(path)
        return {
            "kind": "run",
            "complete": ", ".join(stage for stage in STAGES if run.is_complete(stage)),
            "seconds": round(sum(cost["seconds"] for cost in run.stages.values()), 1),
        }
    if (path / "layout.json").is_file():
        layout = read_json(path / "layout.json")
        stats = read_json(path / "stats.json")
        accuracy = stats["columns"].get("test_accuracy")
        return {
            "kind": "parameter dataset",
            "checkpoints": stats["num_rows"],
            "runs": ", ".join(stats["runs"]),
            "parameters": layout["num_parameters"],
            "tensors": ", ".join(tensor["name"] for tensor in layout["tensors"]),
            "base_model": None if layout["base_model"] is None else layout["base_model"]["name"],
            "test_accuracy": None if accuracy is None else accuracy["mean"],
            "fingerprint": layout["fingerprint"],
        }
    if (path / "model_index.json").is_file():
        index = read_json(path / "model_index.json")
        autoencoder = read_json(path / "autoencoder" / "config.json")
        base_model = index.get("base_model")
        return {
            "kind": "pipeline",
            "autoencoder": autoencoder["_class_name"],
            "latents": [autoencoder["latent_channels"], autoencoder["latent_length"]],
            "scheduler": index["scheduler"][1],
            "parameters": autoencoder["layout"]["num_parameters"],
            "base_model": None if base_model is None else base_model["name"],
        }
    if (path / "metrics.json").is_file():
        metrics = read_json(path / "metrics.json")
        means = {name: round(group["test_accuracy"]["mean"], 4) for name, group in metrics["groups"].items()}
        return {"kind": "report", "verdict": metrics["verdict"], "test_accuracy": means}
    if (path / "index.json").is_file():
        index = read_json(path / "index.json")
        return {"kind": "generated networks", "networks": len(index.pop("files")), **index}
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        if "layout" in config and "_class_name" in config:
            gate = path / GATE_FILE
            described = {"kind": "autoencoder", "class": config["_class_name"]}
            return described | (read_json(gate) if gate.is_file() else {})
    raise ValueError(f"{path} is no run, parameter dataset, autoencoder, pipeline, generated or report folder.")
