import pytest
import torch
from sklearn.datasets import load_digits

from pdiff_hf.evaluation.inspection import cost


@pytest.fixture(autouse=True)
def _time_one_step(monkeypatch):
    monkeypatch.setattr(cost, "TIMING_SECONDS", 1e-9)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)
