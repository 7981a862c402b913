"""What latents are expected for a condition: a regression whose penalty and kernel left-out conditions choose."""

from __future__ import annotations

import torch

from .precision import Float32Module, without_autocast

# Distinct conditions that kernels are centred at; of more, so many are drawn.
MAX_CENTERS = 2048
# Units that choose penalty and kernel; of more, so many are drawn.
MAX_CHOOSING = 1024
# Of kernels exp(-d² / (w² s)), s the mean squared distance of two conditions; 0 is a constant, which has no weight
# beside the offset.
WIDTHS = (0.0, 0.4, 0.6, 1.0, 1.6, 2.5)
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-6, 13))
# Keeps kernel matrices of nearly equal conditions positive definite.
JITTER = 1e-6


class ConditionRegression(Float32Module):
    r"""Ridge regression of values `(K, d)` on conditions `(K, n)`: linear, or with a Gaussian kernel in the sum.

    It predicts offset + c W + k(c) A with kernels k at some of the conditions. Everything but the offset is penalised.
    Kernel and penalty have the smallest squared error on conditions that are left out one by one, with all their rows,
    in closed form: the error with them divided by 1 - H_ii, H the matrix that maps values to predictions. Source:
    Allen 1974; for kernels, Rasmussen and Williams 2006, §5.4.2. Of more than `MAX_CENTERS` distinct conditions some
    are the regressors, §8.3.1 there.

    All of it are buffers, float32 whatever the model is cast to.

    Args:
        condition_size (`int`): Numbers n of a condition.
        num_values (`int`): Values d that are predicted.
        num_centers (`int`): Conditions that kernels are centred at; one of a constant kernel, without weight, of a
            linear regression.
    """

    def __init__(self, condition_size: int, num_values: int, num_centers: int):
        super().__init__()
        self.register_buffer("offset", torch.zeros(num_values))
        self.register_buffer("linear", torch.zeros(condition_size, num_values))
        self.register_buffer("centers", torch.zeros(num_centers, condition_size))
        self.register_buffer("weights", torch.zeros(num_centers, num_values))
        self.register_buffer("sharpness", torch.zeros(()))

    @torch.no_grad()
    def fit(self, conditions: torch.Tensor, values: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Fit it to values `(K, d)` of rows with conditions `(K, n)`, and take as many centres as that needs.

        Args:
            units (`torch.Tensor` of shape `(K,)`): Numbers of what is left out at once, at least two: of the rows'
                conditions, or of the rows.

        Returns:
            `torch.Tensor` of shape `(K, d)`: float64, values minus what is predicted without the row's unit.
        """
        device = self.offset.device
        conditions, values = conditions.cpu().double(), values.cpu().double()
        units = units.cpu().unique(return_inverse=True)[1]
        counts = units.bincount().double()
        of_unit = torch.zeros(len(counts), dtype=torch.long).scatter_(0, units, torch.arange(len(units)))
        x = conditions[of_unit]
        y = torch.zeros(len(counts), values.shape[1], dtype=values.dtype).index_add_(0, units, values)
        y = y / counts[:, None]
        generator = torch.Generator().manual_seed(0)
        some = torch.randperm(len(x), generator=generator)[:MAX_CHOOSING]
        # 1. The kernel and the penalty with the smallest squared error on units left out
        errors = {}
        for width in WIDTHS:
            solver = _Ridge(_Features(width, x[some], generator), x[some], y[some], counts[some])
            for penalty in PENALTIES:
                left_out = counts[some, None] * solver.left_out(penalty).square()
                errors[width, penalty] = left_out.sum().item()
        width, penalty = min(errors, key=errors.get)
        # 2. The regression of all
        features = _Features(width, x, generator)
        solver = _Ridge(features, x, y, counts)
        offset, coefficients = solver.solution(penalty)
        linear, weights = features.to_weights(coefficients)
        self.offset, self.linear, self.weights = (part.float().to(device) for part in (offset, linear, weights))
        self.centers = features.centers.float().to(device)
        self.sharpness.fill_(features.sharpness)
        return values - y[units] + solver.left_out(penalty)[units]

    def forward(self, conditions: torch.Tensor) -> torch.Tensor:
        """What is expected `(B, d)` for conditions `(B, n)`."""
        conditions = conditions.float()
        with without_autocast(conditions.device):
            linear = torch.addmm(self.offset, conditions, self.linear)
            return torch.addmm(linear, _kernel(conditions, self.centers, self.sharpness), self.weights)


def _kernel(conditions: torch.Tensor, centers: torch.Tensor, sharpness: torch.Tensor | float) -> torch.Tensor:
    """Values `(B, m)` of the Gaussian kernel."""
    return (-sharpness * torch.cdist(conditions, centers).square()).exp()


def _spread(conditions: torch.Tensor) -> float:
    """Mean squared distance of two of several conditions `(K, n)`."""
    return 2 * conditions.var(0, correction=0).sum().item()


class _Features:
    """Features φ of conditions, of which the kernel of a width is φ·φ."""

    def __init__(self, width: float, conditions: torch.Tensor, generator: torch.Generator):
        self._scale = conditions.shape[1] ** -0.5
        self.centers, self.sharpness = conditions[:1], 0.0
        if width:
            distinct = conditions.unique(dim=0)
            self.sharpness = 1 / (width**2 * _spread(distinct))
            self.centers = distinct[torch.randperm(len(distinct), generator=generator)[:MAX_CENTERS]]
        gram = _kernel(self.centers, self.centers, self.sharpness)
        self._factor = torch.linalg.cholesky(gram + JITTER * torch.eye(len(gram), dtype=gram.dtype))

    def __call__(self, conditions: torch.Tensor) -> torch.Tensor:
        kernel = _kernel(conditions, self.centers, self.sharpness)
        of_kernel = torch.linalg.solve_triangular(self._factor, kernel.T, upper=False).T
        return torch.cat([self._scale * conditions, of_kernel], 1)

    def to_weights(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of conditions `(n, d)` and of kernels at the centres `(m, d)`, by coefficients of the features."""
        linear, of_kernel = coefficients.tensor_split([len(coefficients) - len(self.centers)])
        return self._scale * linear, torch.linalg.solve_triangular(self._factor.T, of_kernel, upper=True)


class _Ridge:
    """Ridge regressions with all penalties, of means `(u, d)` over so many rows each, around a free offset."""

    def __init__(self, features: _Features, x: torch.Tensor, y: torch.Tensor, counts: torch.Tensor):
        rows, share = features(x), counts[:, None] / counts.sum()
        self._mean_x, self._mean_y = (share * rows).sum(0), (share * y).sum(0)
        self._root = counts.sqrt()[:, None]
        centred, self._y = self._root * (rows - self._mean_x), y - self._mean_y
        eigenvalues, self._vectors = torch.linalg.eigh(centred.T @ centred)
        self._eigenvalues = eigenvalues.clamp_min(0)
        self._rows = centred @ self._vectors
        self._products = self._rows.T @ (self._root * self._y)
        self._of_offset = share[:, 0]

    def solution(self, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The offset `(d,)` and the coefficients `(F, d)`."""
        coefficients = self._vectors @ (self._products / (self._eigenvalues + penalty)[:, None])
        return self._mean_y - self._mean_x @ coefficients, coefficients

    def left_out(self, penalty: float) -> torch.Tensor:
        """Of every unit `(u, d)`: its mean minus what is predicted without it."""
        shrunk = self._eigenvalues + penalty
        residuals = self._y - (self._rows @ (self._products / shrunk[:, None])) / self._root
        own = (self._rows.square() / shrunk).sum(1) + self._of_offset
        return residuals / (1 - own).clamp_min(1e-6)[:, None]
