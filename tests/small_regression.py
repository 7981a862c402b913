"""Networks of a user's own class and what judges them, as a file of code and checkpoints beside it."""

import importlib.util

import torch
from torch import nn

CODE = """
import torch
from torch import nn


class Regressor(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def mlp(width=6):
    return Regressor(width)


def examples(seed, n=60):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return x, torch.sin(2 * x[:, :1]) + x[:, 1:2]


@torch.no_grad()
def errors(network, split):
    x, y = examples({"val": 1, "test": 2}[split])
    return (network(x) - y).square()[:, 0]


errors.metric = "mse"
errors.higher_is_better = False


@torch.no_grad()
def fit(network):
    x, y = examples(2)
    return 1 - float((network(x) - y).square().mean())


def nothing(network):
    pass


def rows_of_each(network):
    return network(examples(2)[0])


def nan(network):
    return float("nan")


def broken(network):
    return network.no_such_layer


counts = []


def uneven(network):
    counts.append(1)
    return torch.zeros(len(counts))


number = 3
"""


def make_checkpoints(folder, num=12):
    """Write `own_regression.py` and checkpoints of one training in `nets/`."""
    file = folder / "own_regression.py"
    file.write_text(CODE)
    spec = importlib.util.spec_from_file_location("made_for_checkpoints", file)
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    torch.manual_seed(0)
    network, (x, y) = code.mlp(), code.examples(0)
    optimizer = torch.optim.Adam(network.parameters(), 0.03)
    (folder / "nets").mkdir()
    for step in range(60 + 5 * num):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(x), y).backward()
        optimizer.step()
        if step >= 60 and step % 5 == 0:
            torch.save(network.state_dict(), folder / "nets" / f"step-{step}.pt")
    return file
