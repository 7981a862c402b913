"""Names by which scripts and files call what has moved."""

from inspect import isfunction

import pytest


def test_factories_are_found_under_the_name_that_files_have():
    from pdiff_hf import networks
    from pdiff_hf.tasks import networks as named

    public = {
        name for name, value in vars(networks).items() if isfunction(value) and value.__module__ == networks.__name__
    }
    assert {*named.__all__} == public
    assert all(getattr(named, name) is getattr(networks, name) for name in public)


def test_the_package_of_the_models_hands_them_on():
    import pdiff_hf.models
    from pdiff_hf.models import AutoencoderPCA
    from pdiff_hf.models.auto import own_classes

    assert AutoencoderPCA is own_classes()["AutoencoderPCA"]
    assert all(getattr(pdiff_hf.models, name) is cls for name, cls in own_classes().items())
    for name in ("Nothing", "nothing"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
            getattr(pdiff_hf.models, name)
