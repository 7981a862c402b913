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
