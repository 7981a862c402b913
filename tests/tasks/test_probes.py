import pytest
import torch
from PIL import Image

from pdiff_hf.models.kinds import AutoencoderFunctionalConfig
from pdiff_hf.tasks.auto import load_task
from pdiff_hf.tasks.config import ImageClassificationConfig
from pdiff_hf.tasks.probes import ProbeSource, make_probes


def digits():
    return load_task(ImageClassificationConfig())


def distances(probes, task):
    images = task.arrays("train")[0].flatten(1)
    return torch.cdist(probes.flatten(1), images).amin(1)


def test_probes_are_near_training_images_and_some_lie_between():
    task = digits()
    found = distances(ProbeSource(task, noise=0.0).draw(400, 0), task)
    assert found.median() < 0.05 < found.max()
    assert distances(ProbeSource(task, mixing=0.0, noise=0.0).draw(50, 0), task).max() < 1e-3


def test_noise_is_in_units_of_the_spread_of_the_images():
    task = digits()
    clean, noisy = (ProbeSource(task, noise=noise).draw(400, 0) for noise in (0.0, 0.5))
    spread = task.arrays("train")[0].std()
    assert torch.allclose((noisy - clean).std(), 0.5 * spread, rtol=0.05)


def test_images_of_another_dataset_are_drawn_as_those_of_the_task(tmp_path):
    # Without labels, in a size and mode of their own.
    (tmp_path / "train").mkdir()
    for index in range(30):
        Image.new("RGB", (20, 16), (200 + index,) * 3).save(tmp_path / "train" / f"{index}.png")
    task = digits()
    others = task.other_images(str(tmp_path), 20)
    assert others.shape == (20, 1, 8, 8)
    assert len({round(255 * value) for value in others[:, 0, 0, 0].tolist()} & {*range(200, 230)}) == 20
    probes = ProbeSource(task, mixing=0.0, noise=0.0, others=others, share=0.25).draw(400, 0)
    # Those of one colour.
    is_other = probes.flatten(1).std(1) < 1e-3
    assert 0.18 < is_other.float().mean() < 0.32
    assert distances(probes[~is_other], task).max() < 1e-3


def test_images_that_are_not_there_are_refused(tmp_path):
    config = AutoencoderFunctionalConfig(probe_dataset=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"expected a folder of images .* correct probe_dataset"):
        make_probes(None, config, digits())


def test_probes_depend_on_the_seed_alone():
    source = ProbeSource(digits())
    assert torch.equal(source.draw(9, 3), source.draw(9, 3)) and not torch.equal(source.draw(9, 3), source.draw(9, 4))


def test_labelled_examples_are_those_of_the_task():
    task = digits()
    inputs, labels = ProbeSource(task).labelled(20, 0)
    images, known = task.arrays("train")
    rows = torch.cdist(inputs.flatten(1), images.flatten(1)).argmin(1)
    assert torch.equal(images[rows], inputs) and torch.equal(known[rows], labels)


class Texts:
    """Texts of 6 tokens, 0 is padding and 1 begins each; the second half of the texts has other words."""

    is_augmented = False
    ids = torch.tensor([[1, 10, 11, 12, 0, 0], [1, 10, 11, 0, 0, 0], [1, 20, 21, 22, 23, 0], [1, 20, 21, 22, 0, 0]])

    def arrays(self, split):
        return self.ids.repeat(50, 1), torch.zeros(200, dtype=torch.int64)


def test_texts_take_tokens_of_others_and_keep_their_length_and_first_token():
    mixed = ProbeSource(Texts(), mixing=0.5, noise=0.2).draw(600, 0)
    assert (mixed[:, 0] == 1).all()
    lengths = (mixed != 0).sum(1)
    assert set(lengths.tolist()) <= {3, 4, 5}
    # The text stops where it did: nothing but padding follows padding.
    assert all((row[:length] != 0).all() for row, length in zip(mixed, lengths, strict=True))
    both = ((mixed >= 10) & (mixed < 20)).any(1) & (mixed >= 20).any(1)
    assert 0.1 < both.double().mean() < 0.9
    plain = ProbeSource(Texts(), mixing=0.0, noise=0.0).draw(600, 0)
    assert set(map(tuple, plain.tolist())) == set(map(tuple, Texts.ids.tolist()))
