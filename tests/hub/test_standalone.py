import importlib.util
import re
from pathlib import Path

import pytest
import torch

import pdiff_hf
from factories import make_autoencoder, make_vectors
from pdiff_hf.pipelines.standalone import ON_DEMAND, loader

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
