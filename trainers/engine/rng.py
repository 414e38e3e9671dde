"""Random generators derived from a seed and a path of numbers."""

import torch

_MASK = (1 << 64) - 1


def generator_for(seed: int, *path: int) -> torch.Generator:
    """A CPU generator for one place (step, purpose ...) of the run that ``seed`` names.

    The numbers are mixed (splitmix64's finaliser), so that neighbouring steps and seeds are unrelated.
    """
    state = seed & _MASK
    for number in path:
        state = _mix(state ^ _mix(number + 0x9E3779B97F4A7C15))
    return torch.Generator("cpu").manual_seed(_mix(state) >> 1)


def _mix(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
