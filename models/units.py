"""Formatting of parameter counts and byte sizes for reports."""

from collections.abc import Sequence

from torch import Tensor


def describe_size(parameters: Sequence[Tensor]) -> str:
    """Return the count and size in float32, such as ``797,184 parameters, 3.04 MiB in float32``; see :func:`in_mib`."""
    count = sum(parameter.numel() for parameter in parameters)
    return f"{count:,} parameters, {in_mib(4 * count)} in float32"


def in_mib(size: int) -> str:
    """Return a number of bytes in GiB above 1e9, in KiB up to 1e5, and in MiB between."""
    if size > 1e9:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.2f} MiB" if size > 1e5 else f"{size / 2**10:.1f} KiB"
