r"""Frechet distance between two Gaussians fitted to features, in float64.

.. math:: d^2 = |\mu_1 - \mu_2|^2 + \mathrm{Tr}(S_1) + \mathrm{Tr}(S_2) - 2\,\mathrm{Tr}\sqrt{S_1 S_2}

The last trace needs no matrix square root: with any factor :math:`S_1 = K K^T`, the product
:math:`S_1 S_2` has the eigenvalues of the symmetric :math:`K^T S_2 K`, and with both factors the trace is the
nuclear norm of :math:`K_1^T K_2`. A Cholesky factor and one symmetric eigenvalue problem are some thirty times
faster at d = 2048 than a general square root. A matrix of rank r < d (fewer samples than features) is factored by
its r positive eigenvalues alone: the zeros, which a root would turn from 1e-16 to 1e-8 each, are left out.

References:
    - GANs trained by a two time-scale update rule converge to a local Nash equilibrium (equation 6).
      https://arxiv.org/abs/1706.08500
    - The Frechet distance between multivariate normal distributions.
      https://doi.org/10.1016/0047-259X(82)90077-X
"""

import torch
from torch import Tensor

_BLOCK = 512


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Squared Frechet distance between two Gaussians, what is reported as FID.

    Args:
        mu1: (d,) mean of the first.
        sigma1: (d, d) covariance of the first.
        mu2: (d,) mean of the second.
        sigma2: (d, d) covariance of the second.

    Returns:
        The distance, 0 or more.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    _check_moments(mu1, sigma1)
    _check_moments(mu2, sigma2)
    if mu1.shape != mu2.shape:
        raise ValueError(
            f"The two sides have {len(mu1)} and {len(mu2)} features: statistics of two different extractors "
            "cannot be compared."
        )
    difference = _double(mu1) - _double(mu2)
    traces = _double(sigma1).trace() + _double(sigma2).trace()
    return _assemble(difference, traces, trace_sqrt_product(sigma1, sigma2))


def frechet_distance_from_features(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features.

    With fewer samples than features on both sides the trace is the nuclear norm of Xc Yc^T, which is exact
    where the covariances are singular.

    Args:
        x: (N, d) features.
        y: (M, d) features.

    Returns:
        The distance, 0 or more.

    Raises:
        ValueError: shapes that do not fit, fewer than two samples, or values that are not finite.
    """
    for features in (x, y):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"Expected features (N, d) of at least 2 samples, got {tuple(features.shape)}.")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"The two sides have {x.shape[1]} and {y.shape[1]} features.")
    x, y = _double(x), _double(y)
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("The features hold values that are not finite (inf or nan).")
    mu_x, mu_y = x.mean(0), y.mean(0)
    x, y = (x - mu_x) / (len(x) - 1) ** 0.5, (y - mu_y) / (len(y) - 1) ** 0.5
    few = max(len(x), len(y)) < x.shape[1]
    root = _nuclear_norm(x @ y.T) if few else trace_sqrt_product(x.T @ x, y.T @ y)
    return _assemble(mu_x - mu_y, x.square().sum() + y.square().sum(), root)


def trace_sqrt_product(sigma1: Tensor, sigma2: Tensor) -> float:
    """Trace of the square root of the product of two covariances.

    Args:
        sigma1: (d, d) symmetric, positive semidefinite.
        sigma2: (d, d) likewise.

    Returns:
        The sum of the roots of the eigenvalues of sigma1 sigma2.
    """
    sigma1, sigma2 = _double(sigma1), _double(sigma2)
    lower1, lower2 = _cholesky(sigma1), _cholesky(sigma2)
    if lower1 is not None and lower2 is not None:
        return _sum_of_roots(_gram(_transposed_product(lower1, lower2)))
    if lower2 is not None:
        factor = _factor(sigma1)
        return _sum_of_roots(factor.T @ sigma2 @ factor)
    if lower1 is not None:
        factor = _factor(sigma2)
        return _sum_of_roots(factor.T @ sigma1 @ factor)
    return _nuclear_norm(_factor(sigma1).T @ _factor(sigma2))


def _factor(sigma: Tensor) -> Tensor:
    """Factor K (d, r) with K K^T = sigma, r being the rank to rounding."""
    values, vectors = torch.linalg.eigh(sigma)
    keep = values > _tolerance(sigma)
    factor: Tensor = vectors[:, keep] * values[keep].sqrt()
    return factor


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """Compute A^T B of two lower triangular matrices: their zero blocks are skipped, half of the work."""
    half = len(a) // 2
    if half < _BLOCK // 2:
        return a.T @ b
    out = torch.empty_like(a)
    corner, below = a[half:, :half].T, b[half:, :half]
    out[:half, :half] = _transposed_product(a[:half, :half], b[:half, :half]).addmm_(corner, below)
    out[half:, half:] = _transposed_product(a[half:, half:], b[half:, half:])
    torch.mm(corner, b[half:, half:], out=out[:half, half:])
    torch.mm(a[half:, half:].T, below, out=out[half:, :half])
    return out


def _gram(matrix: Tensor) -> Tensor:
    """Lower triangle of M M^T in blocks of rows; what is above is not meant to be read."""
    out = torch.zeros_like(matrix)
    for first in range(0, len(matrix), _BLOCK):
        last = first + _BLOCK
        out[first:last, : min(last, len(matrix))] = matrix[first:last] @ matrix[:last].T
    return out


def _cholesky(sigma: Tensor) -> Tensor | None:
    """Cholesky factor, or None where the matrix is singular to rounding."""
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(sigma)
    # a singular matrix passes when rounding makes its zeros positive: the pivots tell
    if int(info) != 0 or bool((lower.diagonal().square() <= _tolerance(sigma)).any()):
        return None
    return lower


def _tolerance(sigma: Tensor) -> Tensor:
    """What an eigenvalue may be by rounding alone."""
    largest = sigma.diagonal().max() if len(sigma) else sigma.new_zeros(())
    return len(sigma) * torch.finfo(torch.float64).eps * largest


def _sum_of_roots(symmetric: Tensor) -> float:
    if symmetric.numel() == 0:
        return 0.0
    values = torch.linalg.eigvalsh(symmetric, UPLO="L")
    return float(values.clamp(min=0).sqrt().sum())


def _nuclear_norm(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix).sum()) if matrix.numel() else 0.0


def _assemble(difference: Tensor, traces: Tensor, root: float) -> float:
    # identical sets may come out a rounding error below zero
    return max(0.0, float(difference.square().sum() + traces) - 2 * root)


def _double(x: Tensor) -> Tensor:
    """Float64, on the CPU where the device has none."""
    return (x.cpu() if x.device.type == "mps" else x).detach().double()


def _check_moments(mu: Tensor, sigma: Tensor) -> None:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"Expected a mean (d,) and a covariance (d, d), got {tuple(mu.shape)}, {tuple(sigma.shape)}.")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError("The statistics hold values that are not finite (inf or nan): the features were not finite.")
