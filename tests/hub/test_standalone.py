import sys
import types

import pytest
import torch

from factories import make_autoencoder, make_vectors
from pdiff_hf.hub import standalone
from pdiff_hf.hub.standalone import inline_modules


def run(text):
    """Run one file of an export as a module, as diffusers does."""
    module = types.ModuleType("exported")
    sys.modules["exported"] = module
    exec(compile(text, "exported", "exec"), vars(module))
    return module


@pytest.mark.parametrize(("kind", "name"), [("pdiff", "AutoencoderPDiff"), ("pca", "AutoencoderPCA")])
def test_exported_autoencoder_computes_the_same(kind, name):
    original = make_autoencoder(kind)
    exported = run(inline_modules(f"pdiff_hf.models.autoencoder_{kind}"))
    copy = getattr(exported, name)(**{key: original.config[key] for key in original._internal_dict if key[0] != "_"})
    assert type(copy).__module__ == "exported"
    copy.load_state_dict(original.state_dict())
    vectors = make_vectors(3)
    with torch.no_grad():
        assert torch.equal(copy.eval()(vectors).sample, original(vectors).sample)


def test_what_the_exporter_relies_on_in_the_sources_is_checked(monkeypatch):
    monkeypatch.setitem(standalone.REPLACEMENTS, "pdiff_hf.models.pca", {"no such line": ""})
    with pytest.raises(RuntimeError, match="expected 'no such line' once"):
        inline_modules("pdiff_hf.models.autoencoder_pca")
