import base64
import io

import pytest
import torch
from PIL import Image, ImageDraw

from pdiff_hf.app.drawing import image_input, open_image, prepare_ink, show_votes
from pdiff_hf.app.vote import take_vote


def drawing(light="white", dark="black", at=(200, 40)):
    image = Image.new("RGB", (280, 280), dark)
    ImageDraw.Draw(image).line([at, (at[0], at[1] + 120)], fill=light, width=20)
    return image


def png(image):
    image.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def test_an_image_comes_by_its_bytes_or_from_a_canvas():
    address = "data:image/png;base64," + base64.b64encode(png(drawing())).decode()
    assert open_image(address).tobytes() == open_image(png(drawing())).tobytes()


@pytest.mark.parametrize("data", [b"no image", "", "data:image/png;base64,AAAA", "data:image/png;base64,***"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ValueError, match="this is no image that can be read"):
        open_image(data)


def test_it_does_not_matter_where_something_is_drawn_or_whether_ink_is_dark():
    here, there = prepare_ink(drawing(), 8), prepare_ink(drawing(at=(60, 100)), 8)
    inverted = prepare_ink(drawing("black", "white"), 8)
    assert here.tobytes() == there.tobytes() == inverted.tobytes()
    # All rows have ink, and it is in the middle.
    pixels = torch.tensor(list(here.tobytes())).view(8, 8)
    assert (pixels.max(1).values > 100).all() and pixels[:, 0].max() == 0 and pixels[:, -1].max() == 0


def test_larger_images_have_a_margin_as_mnist_has():
    pixels = torch.tensor(list(prepare_ink(drawing(), 28).tobytes())).view(28, 28)
    rows = (pixels.max(1).values > 60).nonzero()[:, 0]
    assert 3 <= rows[0] <= 5 and 22 <= rows[-1] <= 24


def test_a_drawn_one_is_read_as_networks_take_it(lab):
    inputs = image_input(lab, drawing())
    assert inputs.shape == (1, 1, 8, 8) and inputs.dtype == torch.float32 and 0.4 < inputs.max() <= 1


def test_nothing_drawn_is_told():
    with pytest.raises(ValueError, match="draw something first"):
        prepare_ink(Image.new("L", (280, 280)), 8)


def test_votes_are_shown_side_by_side_with_agreement_and_uncertainty():
    votes = {
        "generated": take_vote(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])),
        "soup": take_vote(torch.eye(2)[:1]),
    }
    text = show_votes(votes, ["cat", "<dog>"])
    assert "67% of 3 agree" in text and "100% sure" in text and "because networks differ" in text
    assert "&lt;dog&gt;" in text and text.count("<section>") == 2
