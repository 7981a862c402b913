import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

import pdiff_hf
from factories import make_autoencoder, make_conditional_pipeline, make_vectors
from pdiff_hf import PDiffPipeline, UNet1DConditionModel
from pdiff_hf.pipelines.standalone import ON_DEMAND, export_standalone, loader

PACKAGE = Path(pdiff_hf.__file__).parent


def run(path, text):
    """Import one file of an export, as diffusers does."""
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("exported", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("kind", "name"), [("pdiff", "AutoencoderPDiff"), ("pca", "AutoencoderPCA")])
def test_exported_autoencoder_computes_the_same(tmp_path, kind, name):
    original = make_autoencoder(kind)
    exported = run(tmp_path / "exported.py", loader(f"models.autoencoder_{kind}", name))
    copy = getattr(exported, name)(**{key: original.config[key] for key in original._internal_dict if key[0] != "_"})
    assert type(copy) is not type(original) and not type(copy).__module__.startswith("pdiff_hf.")
    copy.load_state_dict(original.state_dict())
    vectors = make_vectors(3)
    with torch.no_grad():
        assert torch.equal(copy.eval()(vectors).sample, original(vectors).sample)


def test_exported_denoiser_computes_the_same(tmp_path):
    original = UNet1DConditionModel(sample_size=2, in_channels=4, block_out_channels=(16, 16), num_class_embeds=3)
    original.fit_gaussian(torch.randn(40, 4, 2, generator=torch.Generator().manual_seed(0)), DDPMScheduler())
    torch.nn.init.normal_(original.conv_out.weight)
    original.save_pretrained(tmp_path)
    exported = run(tmp_path / "exported.py", loader("models.unet_1d_condition", "UNet1DConditionModel"))
    copy = exported.UNet1DConditionModel.from_pretrained(tmp_path)
    assert not type(copy).__module__.startswith("pdiff_hf.")
    assert {"models.gaussian", "models.patches", "models.precision"} <= set(exported.SOURCES)
    noisy, labels = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1)), torch.arange(3)
    with torch.no_grad():
        found, expected = (model.eval()(noisy, 500, labels).sample for model in (copy, original))
    assert torch.equal(found, expected)


def test_sources_are_exported_verbatim(tmp_path):
    exported = run(tmp_path / "exported.py", loader("pipelines.pipeline_pdiff", "PDiffPipeline", ON_DEMAND))
    assert {"pipelines.pipeline_pdiff", "base_model", "layout", "networks"} <= set(exported.SOURCES)
    for name, source in exported.SOURCES.items():
        assert source == (PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"), name


def test_exported_code_has_nothing_that_diffusers_would_look_for_in_the_repository():
    text = loader("pipelines.pipeline_pdiff", "PDiffPipeline", ON_DEMAND)
    found = re.findall(r"^\s*(?:from|import)\s+(\S+)", text, flags=re.MULTILINE)
    assert set(found) <= {"importlib.abc", "importlib.util", "re", "sys", "pathlib"}


def test_what_is_not_exported_says_what_to_install(tmp_path):
    exported = run(tmp_path / "exported.py", loader("pipelines.pipeline_pdiff", "PDiffPipeline", ON_DEMAND))
    with pytest.raises(ModuleNotFoundError, match=r"pipelines\.card is not in this export: pip install pdiff-hf"):
        importlib.import_module(f"{exported.PACKAGE}.pipelines.card")


STANDALONE = """
import importlib.util, sys, torch
assert importlib.util.find_spec("pdiff_hf") is None
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
assert type(pipe.unet).__name__ == "UNet1DConditionModel" and pipe.unet.gaussian.basis.dtype == torch.float32
options, expected = torch.load(sys.argv[2])
drawn = pipe(3, 5, torch.Generator().manual_seed(0), output_type="pt", **options).parameters
torch.testing.assert_close(drawn, expected, atol=5e-5, rtol=0)
assert "pdiff_hf" not in sys.modules
"""


def default_pipeline():
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
    unet = UNet1DConditionModel(sample_size=2, in_channels=4, block_out_channels=(16,))
    unet.fit_gaussian(torch.randn(40, 4, 2, generator=torch.Generator().manual_seed(0)), scheduler)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return PDiffPipeline(make_autoencoder(), unet.eval(), scheduler)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_pipeline", "options"),
    [
        (default_pipeline, {}),
        (make_conditional_pipeline, {"condition": {"classes": ["cat", "dog"]}, "guidance_scale": 1.5}),
    ],
)
def test_exported_pipeline_loads_without_this_package(tmp_path, make_pipeline, options):
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    drawn = pipeline(3, 5, torch.Generator().manual_seed(0), output_type="pt", **options).parameters
    torch.save((options, drawn), tmp_path / "drawn.pt")
    saved = [path for path in (tmp_path / "pipeline").rglob("*") if path.is_file()]
    files = {path.relative_to(tmp_path / "pipeline").as_posix(): path for path in saved}
    for name, path in export_standalone(files, make(tmp_path / "made")).items():
        shutil.copy(path, make((tmp_path / "exported" / name).parent) / Path(name).name)
    # Without `site` the editable install's .pth is not read; the other packages are found by PYTHONPATH.
    environment = {**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1]), "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-S", "-c", STANDALONE, tmp_path / "exported", tmp_path / "drawn.pt"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder
