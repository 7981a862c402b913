from pathlib import Path

import pytest

pytest.importorskip("peft")

from adapters.adapter_cases import make_base


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_base(folder, name) for name in ("bert", "bert-wide", "gpt2", "vit", "resnext")}
