"""Which noise level each sample of a step gets, and every other draw of a step.

Randomness of step k comes from ``(seed, k)`` alone, so that a run can be taken up at any step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Sampler = Callable[[Tensor, int, torch.Generator], Tensor]


def generator_for(seed: int, *path: int) -> torch.Generator:
    """A CPU generator for one place (step, purpose ...) of the run that ``seed`` names.

    The numbers are mixed (splitmix64's finaliser), so that neighbouring steps and seeds are unrelated.
    """
    state = seed & _MASK
    for number in path:
        state = _mix(state ^ _mix(number + 0x9E3779B97F4A7C15))
    return torch.Generator("cpu").manual_seed(_mix(state) >> 1)


def uniform(sigmas: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """t ~ U{0 .. T-1} over the model's own table: L_simple of DDPM, eq. 14 (2006.11239). ``[n]``."""
    return sigmas[torch.randint(len(sigmas), (n,), generator=generator)]


def logit_normal(sigmas: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """t = sigmoid(u), u ~ N(0, 1), as a place in the table: Stable Diffusion 3, eq. 19 (2403.03206). ``[n]``."""
    place = torch.randn(n, generator=generator).sigmoid() * len(sigmas)
    return sigmas[place.long().clamp(max=len(sigmas) - 1)]


SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "logit_normal": logit_normal}

_MASK = (1 << 64) - 1


def _mix(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
