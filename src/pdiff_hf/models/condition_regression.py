"""What latents are expected for a condition: a regression whose penalty and kernel left-out conditions choose."""

from __future__ import annotations

import torch

from .precision import Float32Module, without_autocast

# Distinct conditions that kernels are centred at; of more, so many are drawn.
MAX_CENTERS = 2048
# Values of all features of all conditions, a quarter of a GB.
MAX_VALUES = 2**25
# Conditions that choose penalty and kernel; of more, so many are drawn.
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
    in closed form: (1 - H)⁻¹ times the errors with them, of the part of H that is theirs, H the matrix that maps
    values to predictions. Source: Allen 1974; for kernels, Rasmussen and Williams 2006, §5.4.2. Of more than
    `MAX_CENTERS` distinct conditions some are the regressors, §8.3.1 there.

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
            units (`torch.Tensor` of shape `(K,)`): Numbers of what is left out at once, at least three: the rows, or
                those of a condition or of few.

        Returns:
            `torch.Tensor` of shape `(K, d)`: float64, values minus what is predicted without the row's unit.
        """
        device = self.offset.device
        conditions, values = conditions.cpu().double(), values.cpu().double()
        # Rows of a unit with the same condition count as their mean, so many times.
        number = conditions.unique(dim=0, return_inverse=True)[1]
        pairs, means = torch.stack([units.cpu(), number], 1).unique(dim=0, return_inverse=True)
        units, counts = pairs[:, 0].unique(return_inverse=True)[1], means.bincount().double()
        x = conditions[torch.zeros(len(pairs), dtype=torch.long).scatter_(0, means, torch.arange(len(means)))]
        y = torch.zeros(len(pairs), values.shape[1], dtype=values.dtype).index_add_(0, means, values)
        y = y / counts[:, None]
        # 1. The kernel and the penalty with the smallest squared error on units left out
        generator, num_units = torch.Generator().manual_seed(0), int(units.max()) + 1
        some = torch.randperm(num_units, generator=generator)[: MAX_CHOOSING * num_units // len(x)]
        some = torch.isin(units, some)
        errors = {}
        for width in WIDTHS:
            features = _Features(width, x[some], generator)
            solver = _Ridge(features, x[some], y[some], counts[some], units[some])
            for penalty in PENALTIES:
                left_out = counts[some, None] * solver.left_out(penalty).square()
                errors[width, penalty] = left_out.sum().item()
        width, penalty = min(errors, key=errors.get)
        # 2. The regression of all
        features = _Features(width, x, generator)
        solver = _Ridge(features, x, y, counts, units)
        offset, coefficients = solver.solution(penalty)
        linear, weights = features.to_weights(coefficients)
        self.offset, self.linear, self.weights = (part.float().to(device) for part in (offset, linear, weights))
        self.centers = features.centers.float().to(device)
        self.sharpness.fill_(features.sharpness)
        return values - y[means] + solver.left_out(penalty)[means]

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
            most = min(MAX_CENTERS, MAX_VALUES // len(conditions))
            self.centers = distinct[torch.randperm(len(distinct), generator=generator)[:most]]
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
    """Ridge regressions with all penalties, of means `(u, d)` over so many rows each, around a free offset.

    `units` `(u,)`, in order, are the numbers of what is left out at once.
    """

    def __init__(
        self, features: _Features, x: torch.Tensor, y: torch.Tensor, counts: torch.Tensor, units: torch.Tensor
    ):
        rows, share = features(x), counts[:, None] / counts.sum()
        self._mean_x, self._mean_y = (share * rows).sum(0), (share * y).sum(0)
        self._root, self._of_offset = counts.sqrt()[:, None], share.sqrt()
        centred, self._y = self._root * (rows - self._mean_x), y - self._mean_y
        eigenvalues, self._vectors = torch.linalg.eigh(centred.T @ centred)
        self._eigenvalues = eigenvalues.clamp_min(0)
        self._rows = centred @ self._vectors
        self._products = self._rows.T @ (self._root * self._y)
        # By unit, which are in order, the place of each mean among those of its unit.
        self._units, sizes = units.unique_consecutive(return_inverse=True, return_counts=True)[1:]
        self._place = torch.arange(len(units)) - (sizes.cumsum(0) - sizes)[self._units]
        self._shape = (len(sizes), int(sizes.max()))

    def solution(self, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The offset `(d,)` and the coefficients `(F, d)`."""
        coefficients = self._vectors @ (self._products / (self._eigenvalues + penalty)[:, None])
        return self._mean_y - self._mean_x @ coefficients, coefficients

    def left_out(self, penalty: float) -> torch.Tensor:
        """Means `(u, d)` minus what is predicted without their units: (1 - H)⁻¹ times the residuals of a unit."""
        shrunk = self._eigenvalues + penalty
        residuals = self._root * self._y - self._rows @ (self._products / shrunk[:, None])
        rows, offset = self._by_unit(self._rows / shrunk.sqrt()), self._by_unit(self._of_offset)
        own = rows @ rows.mT + offset @ offset.mT
        rest = torch.eye(self._shape[1], dtype=own.dtype) - own
        return torch.linalg.solve(rest, self._by_unit(residuals))[self._units, self._place] / self._root

    def _by_unit(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `(u, n)` of units, with zeros where a unit has fewer than another `(units, most, n)`."""
        found = rows.new_zeros(*self._shape, rows.shape[1])
        found[self._units, self._place] = rows
        return found
