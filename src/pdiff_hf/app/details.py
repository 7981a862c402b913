"""One network of the page: its mistakes, the norms of its layers, and its files."""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..tasks.image_classification import ImageClassification
from .lab import Drawn, Lab

# Mistakes that are shown.
MAX_MISTAKES = 24
# Downloads that stay on the disk of the server.
MAX_FILES = 16


@dataclass(frozen=True)
class Mistake:
    """An example that a network gets wrong.

    Args:
        example (`int`): Its place among the examples.
        label, answer (`str`): What it is, and what the network says.
    """

    example: int
    label: str
    answer: str


@dataclass(frozen=True)
class LayerNorm:
    """A generated tensor: its Euclidean `norm`, and where the originals are here, the mean of theirs."""

    name: str
    shape: tuple[int, ...]
    norm: float
    of_originals: float | None


def list_mistakes(lab: Lab, drawn: Drawn, number: int) -> list[Mistake]:
    """What a network gets wrong, in the order of the examples; empty where nothing tells."""
    judged = drawn.judged
    if judged is None or judged.wrong is None:
        return []
    names, places = lab.judge.class_names, judged.wrong[number].nonzero()[:, 0].tolist()
    labels, answers = judged.labels[number].tolist(), judged.predictions[number].tolist()
    return [Mistake(place, names[labels[place]], names[answers[place]]) for place in places]


def layer_norms(lab: Lab, drawn: Drawn, number: int) -> list[LayerNorm]:
    """The norms of a network's tensors, in the order of the layout."""
    originals, layout = lab.originals(), lab.source.pipeline.layout
    own = layout.unflatten(drawn.vectors[number : number + 1])
    means: dict[str, float] = {}
    if originals is not None:
        # Not the norm of a mean: that is smaller where originals differ.
        rows = range(min(len(originals.vectors), 200))
        norms = [
            {
                name: tensor.float().norm().item()
                for name, tensor in layout.unflatten(originals.vectors[r : r + 1]).items()
            }
            for r in rows
        ]
        means = {name: sum(row[name] for row in norms) / len(norms) for name in layout.names}
    return [
        LayerNorm(name, tuple(tensor.shape[1:]), tensor.float().norm().item(), means.get(name))
        for name, tensor in own.items()
    ]


def picture(lab: Lab, inputs: torch.Tensor) -> str:
    """An input `(C, H, W)` of an image task as the address of a PNG that is in the page itself."""
    config = lab.judge.task.config
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean or (0.0,), config.std or (1.0,)))
    pixels = (inputs * std + mean).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def show_example(lab: Lab, place: int, caption: str) -> str:
    """An example as HTML: a picture, or a text."""
    inputs = lab.judge.inputs[place]
    if isinstance(lab.judge.task, ImageClassification):
        shown = f'<img src="{picture(lab, inputs)}" alt="{escape(caption)}">'
    else:
        text = lab.judge.task.tokenizer.decode(inputs, skip_special_tokens=True)
        shown = f"<blockquote>{escape(text[:280])}</blockquote>"
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def show_mistakes(lab: Lab, drawn: Drawn, number: int) -> str:
    """The mistakes of a network as HTML."""
    if drawn.judged is None or drawn.judged.wrong is None:
        return "<p>Nothing here says which answers are wrong.</p>"
    found = list_mistakes(lab, drawn, number)
    examples = drawn.judged.wrong.shape[1]
    more = f", the first {MAX_MISTAKES} of them" if len(found) > MAX_MISTAKES else ""
    shown = [
        show_example(lab, mistake.example, f"{mistake.label} → {mistake.answer}") for mistake in found[:MAX_MISTAKES]
    ]
    score = drawn.judged.score[number].item()
    return (
        f"<h3>Network {number}: {score:.1%}</h3><p>{len(found)} mistakes on {examples} test examples{more}; "
        f'what it is → what the network says.</p><div class="pd-mistakes">{"".join(shown)}</div>'
    )


def show_norms(norms: Sequence[LayerNorm]) -> str:
    """The norms of layers as a table."""
    known = any(norm.of_originals is not None for norm in norms)
    rows = "".join(
        f'<tr><th scope="row">{escape(norm.name)}</th><td>{" × ".join(map(str, norm.shape))}</td>'
        f"<td>{norm.norm:.3f}</td>"
        + (f"<td>{norm.of_originals:.3f}</td>" if norm.of_originals is not None else "")
        + "</tr>"
        for norm in norms
    )
    head = "<th>tensor</th><th>shape</th><th>norm</th>" + ("<th>originals, mean</th>" if known else "")
    table = f'<table class="pd-norms"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="pd-scroll">{table}</div>'


class Files:
    """Files of networks to be downloaded, the last `MAX_FILES` of them; removed with the object."""

    def __init__(self, pipeline: PDiffPipeline):
        self._pipeline = pipeline
        self._folder = tempfile.TemporaryDirectory(prefix="pdiff-app-")
        self._kept: list[Path] = []

    @property
    def has_adapters(self) -> bool:
        """Whether networks are adapters, which are a folder each."""
        base = self._pipeline.base_model
        return base is not None and base.adapter is not None

    def write(self, drawn: Drawn, number: int) -> Path:
        """A network as one file: safetensors, or the zipped folder of an adapter that peft loads."""
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        name, vector = f"network-{drawn.request.seed}-{number:03d}", drawn.vectors[number]
        if self.has_adapters:
            self._pipeline.save_adapter(vector, folder / name)
            path = Path(shutil.make_archive(str(folder / name), "zip", folder, name))
            shutil.rmtree(folder / name)
        else:
            state = {key: tensor.contiguous() for key, tensor in self._pipeline.layout.unflatten(vector).items()}
            save_file(state, path := folder / f"{name}.safetensors", metadata={"format": "pt"})
        self._kept.append(folder)
        while len(self._kept) > MAX_FILES:
            shutil.rmtree(self._kept.pop(0), ignore_errors=True)
        return path
