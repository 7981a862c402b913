import pytest
import timm
import torch

from transfer import NAME, imagenet_network


@pytest.fixture(scope="module")
def stored():
    """ImageNet weights as the package names them: the same order, other names."""
    torch.manual_seed(0)
    state = timm.create_model(NAME, num_classes=1000).state_dict()
    return {f"_{index}": tensor for index, tensor in enumerate(state.values())}, state


def test_weights_are_those_of_the_file_by_their_order(stored, tmp_path):
    renamed, state = stored
    torch.save(renamed, tmp_path / "weights.pth")
    network = imagenet_network(tmp_path / "weights.pth", 10)
    own = network.state_dict()
    assert own["classifier.weight"].shape == (10, 1280)
    assert all(torch.equal(own[name], state[name]) for name in state if not name.startswith("classifier."))
    assert not network.training


def test_file_with_other_tensors_is_refused(stored, tmp_path):
    renamed, _ = stored
    torch.save(dict(list(renamed.items())[1:]), tmp_path / "weights.pth")
    with pytest.raises(ValueError):
        imagenet_network(tmp_path / "weights.pth", 10)
