"""How much is trained, for reports."""

from collections.abc import Sequence

from torch import Tensor


def describe_size(parameters: Sequence[Tensor]) -> str:
    """``797,184 numbers, 3.04 MiB in float32``; less than a tenth of that in KiB."""
    numbers = sum(parameter.numel() for parameter in parameters)
    return f"{numbers:,} numbers, {in_mib(4 * numbers)} in float32"


def in_mib(size: int) -> str:
    """Bytes in MiB, in GiB from a thousand of those on, and small ones in KiB."""
    if size > 1e9:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.2f} MiB" if size > 1e5 else f"{size / 2**10:.1f} KiB"
