"""What `pdiff app` refuses, in a line each."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules["gradio"] = None
sys.argv = ["pdiff", "app", sys.argv[1]]
from pdiff_hf.cli import main
main()
"""


def test_without_the_extra_it_is_named(tiny_run):
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tiny_run)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: the page needs gradio: pip install 'pdiff-hf[app]'")
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_is_no_pipeline_is_refused(pdiff, tmp_path):
    code, _, errors = pdiff("app", tmp_path)
    assert code == 2 and "pipeline" in errors and len(errors.splitlines()) == 1


def test_damaged_weights_are_refused(pdiff, tiny_run_copy):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'pdiff-hf[app]'")
    (tiny_run_copy / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    code, _, errors = pdiff("app", tiny_run_copy)
    assert code == 2 and errors.startswith("Error:") and len(errors.splitlines()) == 1
