"""Whole numbers hashed on whatever device they are on: the finalizer of SplitMix64.

References:
    Fast Splittable Pseudorandom Number Generators
    https://doi.org/10.1145/2660193.2660195
"""

from torch import Tensor


def hashed(numbers: Tensor) -> Tensor:
    """Hash int64 numbers to others."""
    # as signed numbers: 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB; products wrap around
    numbers = (numbers + 1) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        numbers = (numbers ^ shifted(numbers, shift)) * factor
    return numbers ^ shifted(numbers, 31)


def shifted(numbers: Tensor, by: int) -> Tensor:
    """Shift to the right, zeros coming in: torch's own shift repeats the sign."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)
