import json
import subprocess
import sys

import pytest

ROOMS = ("data", "evaluation", "report", "tasks", "training")


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import pdiff_hf.layout", ("transformers", "diffusers", "timm", "pdiff_hf.hub")),
        (
            "from pdiff_hf import PDiffPipeline",
            ("datasets", "pyarrow", "matplotlib", "timm", *(f"pdiff_hf.{room}" for room in ROOMS)),
        ),
        (
            "from pdiff_hf import BaseModel; BaseModel.imported('pdiff_hf.tasks.networks:mlp3').build()",
            ("datasets", "diffusers", "matplotlib", "transformers", *(f"pdiff_hf.{room}" for room in ROOMS)),
        ),
        (
            "from pdiff_hf.runs.recipe import load_recipe; load_recipe('digits-mlp')",
            ("matplotlib", "pdiff_hf.evaluation", "pdiff_hf.pipelines", "pdiff_hf.report", "pdiff_hf.training"),
        ),
    ],
)
def test_what_is_not_needed_is_not_loaded(code, unloaded):
    show = f"{code}; import sys; print([name for name in {unloaded!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# Seconds and a gigabyte, which nobody should wait for who is told no, or only asks.
HEAVY = ("torch", "diffusers", "transformers", "datasets", "accelerate", "timm", "sklearn", "scipy", "matplotlib")
HEAVY += ("pyarrow", "numpy", "safetensors", "huggingface_hub.hf_api", "pdiff_hf.layout", "pdiff_hf.pipelines")
CALLS = """
import contextlib, io, json, sys
from pdiff_hf.cli import main

def call(arguments):
    sys.argv, output = ["pdiff", *arguments], io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            main()
    except SystemExit as end:
        return end.code or 0, output.getvalue()
    return 0, output.getvalue()

heavy, calls = json.loads(sys.argv[1])
found = []
for arguments in calls:
    code, output = call(arguments)
    found.append([arguments, code, output, [name for name in heavy if name in sys.modules]])
print(json.dumps(found))
"""


def test_what_is_refused_or_only_shown_is_so_before_anything_heavy_is_loaded(tiny_run, tmp_path):
    full, new = tmp_path / "full", tmp_path / "new"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    weights = tiny_run / "dataset" / "base" / "model.safetensors"
    shown = [
        *(["--help"], ["push", "--help"], ["recipes"], ["recipes", "digits-mlp", "--profile", "cpu-smoke"]),
        *(
            [command, "--help"]
            for command in ("run", "import", "train", "generate", "evaluate", "inspect", "ablate", "app")
        ),
        *(["info", tiny_run / part] for part in ("", "dataset", "autoencoder", "pipeline", "generated", "report")),
    ]
    refused = [
        *(["run"], ["bogus"], ["generate", "--top", "x"], ["info", "/nowhere"], ["info", full]),
        ["run", "digits-mlpp", "--out", new],
        ["run", "digits-mlp", "--out", new, "--set", "diffusion.stp=3"],
        ["run", "digits-mlp", "--out", new, "--set", "collect.every=0"],
        ["run", "digits-mlp", "--out", new, "--set", "task.dataset=/nowhere"],
        ["run", "digits-mlp", "--out", new, "--seed", "1", "--seeds", "2"],
        ["run", "digits-mlp", "--out", full],
        ["run", "digits-convnet", "--out", tiny_run],
        ["demo", "--out", full],
        *(["app", "/nowhere"], ["app", full], ["app", tiny_run / "pipeline", "--dataset", "/nowhere"]),
        ["collect", "digits-mlp", "--out", full],
        ["train", "/nowhere", "--out", new],
        ["train", tiny_run / "dataset", "--out", new, "--set", "diffusion.stp=3"],
        ["train", tiny_run / "dataset", "--out", tiny_run / "dataset", "--preset", "papr"],
        ["ablate", "digits-mlp", "--axis", "noise=bogus", "--out", new],
        ["ablate", "digits-mlp", "--axis", "noise=none", "--out", full],
        ["import", "/nowhere", "--out", new],
        ["import", weights, "--out", full, "--base", "timm:resnet18"],
        ["import", weights, "--out", new, "--base", "resnet18"],
        ["import", weights, "--out", new, "--kwargs", "{"],
        ["import", weights, "--out", new, "--metrics-pattern", "("],
        ["import", "hub:user/net", "hub:user/net", "--out", new],
        ["inspect", "/nowhere"],
        ["generate", "/nowhere", "--out", new],
        ["generate", tiny_run / "pipeline", "--out", full],
        ["generate", tiny_run / "pipeline", "--out", new, "--scheduler", "heun"],
        ["generate", tiny_run / "pipeline", "--out", new, "--top", "2"],
        ["generate", tiny_run / "pipeline", "--out", new, "--choose", "test"],
        ["generate", tiny_run / "pipeline", "--out", new, "--choose", "val", "--top", "101"],
        ["evaluate", full],
        ["evaluate", tiny_run, "--out", full],
        ["evaluate", tiny_run, "--generated", "/nowhere"],
        ["evaluate", tiny_run, "--generated", full, "--fine-tune"],
        ["trajectory", full],
        ["push", "dataset", full, "user/name"],
        ["push", "pipeline", full, "user/name"],
        ["push", "generated", full, "user/name"],
        ["push", "generated", tiny_run / "generated", "user/name", "--zoo", "--index", "1"],
    ]
    calls = [[str(argument) for argument in arguments] for arguments in [*shown, *refused]]
    # One process for all: what one of them loads, those after it have, too.
    done = subprocess.run([sys.executable, "-c", CALLS, json.dumps([HEAVY, calls])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, (arguments, code, output, loaded) in enumerate(json.loads(done.stdout)):
        assert code == (0 if number < len(shown) else 2) and "Traceback" not in output, (arguments, code, output)
        assert not loaded, arguments
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["full", "thesis.txt"]
