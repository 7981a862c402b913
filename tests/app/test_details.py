import base64
import io
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pdiff_hf.app import details
from pdiff_hf.app.details import Files, layer_norms, list_mistakes, picture, show_mistakes, show_norms


def test_mistakes_are_what_the_network_gets_wrong(lab, drawn):
    found = list_mistakes(lab, drawn, 1)
    labels = lab.judge.task.labels("test")
    assert len(found) == drawn.judged.wrong[1].sum() > 0
    assert all(mistake.label == str(labels[mistake.example].item()) != mistake.answer for mistake in found)
    text = show_mistakes(lab, drawn, 1)
    assert text.count("<img") == min(len(found), details.MAX_MISTAKES)
    assert f"{found[0].label} → {found[0].answer}" in text


def test_a_picture_is_the_example(lab):
    data = picture(lab, lab.judge.inputs[3]).removeprefix("data:image/png;base64,")
    pixels = torch.tensor(list(Image.open(io.BytesIO(base64.b64decode(data))).tobytes()))
    assert torch.allclose(pixels / 255, lab.judge.inputs[3].flatten(), atol=1 / 255)


def test_norms_are_those_of_the_tensors_and_of_the_originals(lab, drawn):
    found, layout = layer_norms(lab, drawn, 0), lab.source.pipeline.layout
    assert [norm.name for norm in found] == [*layout.names]
    first = layout.unflatten(lab.originals().vectors)[found[0].name].flatten(1).norm(dim=1)
    assert found[0].of_originals == pytest.approx(first.mean().item(), rel=1e-5)
    assert found[0].norm == pytest.approx(layout.unflatten(drawn.vectors[:1])[found[0].name].norm().item())
    assert re.search(rf"{found[0].name}.*32 × 64|{found[0].name}", show_norms(found))


def test_a_download_is_the_network(lab, drawn):
    files = Files(lab.source.pipeline)
    state = load_file(files.write(drawn, 4))
    assert torch.equal(lab.source.pipeline.layout.flatten(state), drawn.vectors[4])


def test_old_downloads_are_removed(lab, drawn, monkeypatch):
    monkeypatch.setattr(details, "MAX_FILES", 2)
    files = Files(lab.source.pipeline)
    paths = [files.write(drawn, number) for number in range(4)]
    assert [path.exists() for path in paths] == [False, False, True, True]
