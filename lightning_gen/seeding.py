"""Every random draw as a function of where it is made, never of what was drawn before.

A training iteration draws from the global generators of torch, set anew from (seed, rank, batch number).
A sample draws from a stream of its own, named by (seed, sample index): it is the same image in a batch of
one or of a thousand, on one process or on eight.

The stream of a sample is Philox 4x64 with (seed, index) as its key: distinct pairs give distinct streams.
torch's CPU generator would not do, since it keeps 32 bits of its seed: among 50,000 samples some would
be likely to start alike.

References:
    Parallel Random Numbers: As Easy as 1, 2, 3
    https://doi.org/10.1145/2063384.2063405
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


def mix(*integers: int) -> int:
    """Hash integers to one of 63 bits: seeds for places named by several numbers."""
    packed = b"".join(struct.pack("<q", integer) for integer in integers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def seed_device(device: torch.device, seed: int) -> None:
    """Set the global generators of the CPU and of one device.

    torch.manual_seed does the same for every device there is, at a tenth of a millisecond; this is called
    once an iteration.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


class RandomStream(Protocol):
    """Where a sampler draws from: `n` rows at a time, of whatever shape it needs.

    Attributes:
        dtype: of the normal and uniform numbers.
    """

    dtype: torch.dtype

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, `(n, *shape)`."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers uniform in [0, 1), `(n, *shape)`."""
        ...

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw int64 numbers uniform in 0 ... high - 1, `(n, *shape)`."""
        ...

    def categorical(self, probabilities: Tensor) -> Tensor:
        """Draw int64 classes `(n,)` from probabilities `(K,)`."""
        ...


class SampleStreams:
    """One stream a sample: what row i draws is a function of its (seed, index) and of its earlier draws.

    Numbers are drawn on the CPU and then moved, so that every device sees the same ones.

    Args:
        seed: any integer of 64 bits, 0 or more.
        first: index of the first sample, the others following it; or the index of every sample.
        n: number of samples.
        device: where the numbers are wanted.
        dtype: of the normal and uniform numbers; float32 or float64.
    """

    def __init__(
        self,
        seed: int,
        first: int | Sequence[int],
        n: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        indices = range(first, first + n) if isinstance(first, int) else list(first)
        if len(indices) != n:
            raise ValueError(f"{n} samples need {n} indices, given were {len(indices)}.")
        if seed < 0 or min(indices, default=0) < 0:
            raise ValueError(f"A seed and an index are 0 or more, given were seed={seed}, first={first}.")
        self.device, self.dtype = torch.device(device), dtype
        self._numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
        self._generators = [
            np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64))) for index in indices
        ]

    def _send(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(rows).to(dtype).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, `(n, *shape)`."""
        rows = np.empty((len(self._generators), *shape), dtype=self._numpy_dtype)
        for row, generator in zip(rows, self._generators, strict=True):
            row[...] = generator.standard_normal(shape, dtype=self._numpy_dtype)
        return self._send(rows, self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers uniform in [0, 1), `(n, *shape)`."""
        rows = np.empty((len(self._generators), *shape), dtype=self._numpy_dtype)
        for index, generator in enumerate(self._generators):
            rows[index] = generator.random(shape, dtype=self._numpy_dtype)
        return self._send(rows, self.dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw int64 numbers uniform in 0 ... high - 1, `(n, *shape)`."""
        rows = np.empty((len(self._generators), *shape), dtype=np.int64)
        for index, generator in enumerate(self._generators):
            rows[index] = generator.integers(high, size=shape)
        return self._send(rows, torch.int64)

    def categorical(self, probabilities: Tensor) -> Tensor:
        """Draw int64 classes `(n,)` from probabilities `(K,)`."""
        return inverse_cdf(probabilities, self.uniform())


class GeneratorStream:
    """All rows from one torch generator, or from the global one: as fast as torch draws.

    Args:
        generator: where to draw; the global generator of the device where it is None.
        n: number of samples.
        device: where the numbers are wanted.
        dtype: of the normal and uniform numbers.
    """

    def __init__(
        self,
        generator: torch.Generator | None,
        n: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.generator, self.n, self.device, self.dtype = generator, n, torch.device(device), dtype
        self._source = generator.device if generator is not None else self.device

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, `(n, *shape)`."""
        drawn = torch.randn(self.n, *shape, generator=self.generator, device=self._source, dtype=self.dtype)
        return drawn.to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers uniform in [0, 1), `(n, *shape)`."""
        drawn = torch.rand(self.n, *shape, generator=self.generator, device=self._source, dtype=self.dtype)
        return drawn.to(self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw int64 numbers uniform in 0 ... high - 1, `(n, *shape)`."""
        drawn = torch.randint(high, (self.n, *shape), generator=self.generator, device=self._source)
        return drawn.to(self.device)

    def categorical(self, probabilities: Tensor) -> Tensor:
        """Draw int64 classes `(n,)` from probabilities `(K,)`."""
        return inverse_cdf(probabilities, self.uniform())


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Send uniform numbers in [0, 1), of any shape, through the inverse of the distribution function.

    Args:
        probabilities: of the classes, `(K,)`, or any multiple of them.
        uniform: the numbers.

    Returns:
        Classes, int64, of the shape of the numbers.
    """
    precise = torch.float32 if uniform.device.type == "mps" else torch.float64
    cumulative = probabilities.to(uniform.device, precise).cumsum(0)
    # the last bound is 1 whatever rounding made of it; a class of probability 0 is never drawn
    drawn = torch.searchsorted(cumulative / cumulative[-1], uniform.to(precise), right=True)
    return drawn.clamp_(max=len(probabilities) - 1)
