"""What somebody draws, uploads or types, as an input of the networks; and the votes on it as HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

import numpy as np
import torch
from PIL import Image

from ..files import errors_of
from ..tasks.image_classification import ImageClassification
from .lab import Lab
from .vote import Vote

# Uploads beyond this are refused before they are decoded.
MAX_PIXELS = 40_000_000
# Of the side of an image, on each side of what is drawn: MNIST has 4 of 28 pixels, the embedded digits fill theirs.
MARGIN = {8: 0.0}
USUAL_MARGIN = 1 / 7
TITLES = {"generated": "Generated", "originals": "Originals", "soup": "Soup of the originals"}


def open_image(data: str | bytes) -> Image.Image:
    """An image by its bytes, or by the address `data:image/png;base64,…` that a canvas gives.

    Raises:
        ValueError: it is none, or too large.
    """
    refused = "this is no image that can be read; give a PNG or JPEG."
    if isinstance(data, str):
        with errors_of(refused[:-1]):
            data = base64.b64decode(data.partition(";base64,")[2], validate=True)
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height <= MAX_PIXELS:
            image.load()
            return image
    except (OSError, ValueError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(refused) from error
    raise ValueError(f"this image has {image.width} x {image.height} pixels; give a smaller one.")


def prepare_ink(image: Image.Image, size: int) -> Image.Image:
    """A drawing as light ink on black `(size, size)`, cut out and centred as handwritten digits are.

    Dark ink on a light ground is inverted.

    Raises:
        ValueError: there is no ink.
    """
    if image.mode in ("RGBA", "LA", "PA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    ink = np.asarray(image.convert("L"), dtype=np.float32) / 255
    border = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    if border.mean() > 0.5:
        ink = 1 - ink
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("draw something first.")
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(ink.shape)
    outer = round(side / (1 - 2 * MARGIN.get(size, USUAL_MARGIN)))
    square = np.zeros((outer, outer), dtype=np.float32)
    top, left = (outer - ink.shape[0]) // 2, (outer - ink.shape[1]) // 2
    square[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return Image.fromarray((square * 255).round().astype(np.uint8)).resize((size, size), Image.Resampling.BOX)


def image_input(lab: Lab, image: Image.Image) -> torch.Tensor:
    """An image as the networks of a task take it, `(1, C, H, W)`.

    Raises:
        ValueError: the networks take no images, or there is nothing in it.
    """
    task = None if lab.judge is None else lab.judge.task
    if not isinstance(task, ImageClassification):
        raise ValueError("these networks take no images.")
    if task.config.in_chans == 1:
        image = prepare_ink(image, task.config.image_size)
    return task.encode(image)


def text_input(lab: Lab, text: str) -> torch.Tensor:
    """A text as the networks of a task take it, `(1, L)`."""
    if not text or not text.strip():
        raise ValueError("type something first.")
    return lab.judge.task.encode(text)


def show_votes(votes: Mapping[str, Vote], class_names: list[str], shown: str = "") -> str:
    """Votes side by side as HTML; `shown` is what was voted on."""
    columns = [_show_vote(TITLES[name], vote, class_names) for name, vote in votes.items()]
    return f'<div class="pd-votes" role="status">{shown}{"".join(columns)}</div>'


def _show_vote(title: str, vote: Vote, class_names: list[str]) -> str:
    best = sorted(range(len(vote.mean)), key=lambda place: (-vote.counts[place], -vote.mean[place]))[:10]
    order = sorted(best)
    bars = "".join(
        f'<tr class="{"pd-winner" if place == vote.winner else ""}"><th scope="row">{escape(class_names[place])}</th>'
        f'<td class="pd-bar"><span style="width:{100 * vote.counts[place] / vote.size:.1f}%"></span></td>'
        f"<td>{vote.counts[place]}</td><td>{vote.mean[place]:.0%}</td></tr>"
        for place in order
    )
    if vote.size > 1:
        said = f"{vote.agreement:.0%} of {vote.size} agree"
        unsure = f"uncertainty {vote.uncertainty:.2f} bits, of it {vote.disagreement:.2f} because networks differ"
    else:
        said = f"{vote.mean[vote.winner]:.0%} sure"
        unsure = f"uncertainty {vote.uncertainty:.2f} bits"
    return (
        f'<section><h3>{escape(title)}</h3><p class="pd-answer"><b>{escape(class_names[vote.winner])}</b> {said}</p>'
        f'<p class="pd-note">{unsure}</p><table><thead><tr><th>answer</th><th></th><th>votes</th><th>mean</th></tr>'
        f"</thead><tbody>{bars}</tbody></table></section>"
    )
