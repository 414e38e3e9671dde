"""How much is trained, for reports."""

from collections.abc import Sequence

from torch import Tensor


def describe_size(parameters: Sequence[Tensor]) -> str:
    """``797,184 numbers, 3.04 MiB in float32``; less than a tenth of that in KiB."""
    numbers = sum(parameter.numel() for parameter in parameters)
    size = 4 * numbers
    return f"{numbers:,} numbers, {f'{size / 2**20:.2f} MiB' if size > 1e5 else f'{size / 2**10:.1f} KiB'} in float32"
