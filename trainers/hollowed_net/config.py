"""Settings of a Hollowed Net (arXiv 2411.01179), with their defaults; the node's schema reads them here."""

from dataclasses import dataclass, replace

from ..checks import check_choice, check_number

STORAGES = ("ram", "disk", "none")


@dataclass(frozen=True, kw_only=True)
class HollowedNetConfig:
    """How blocks of a network are removed for a training.

    Args:
        fraction: share of the diffusion model's parameters to remove; the nearest possible span of blocks is taken.
        samples: draws of (image, noise, noise level) that the whole network runs on beforehand; training cycles through
            them. ``steps x batch_size`` samples are used once each.
        storage: where the activations are cached: ``ram``; ``disk``, where they survive a cancel; ``none``: nothing is
            cached, and each step runs the removed blocks without gradients on fresh noise.
    """

    fraction: float = 0.4
    samples: int = 500
    storage: str = "ram"

    def __post_init__(self) -> None:
        check_number("fraction", self.fraction, 0.0, 1.0)
        check_number("samples", self.samples, 1)
        check_choice("storage", self.storage, STORAGES)

    @property
    def cache_key(self) -> "HollowedNetConfig":
        """The settings with those that do not change the result at one value, for the run's hash."""
        return replace(self, samples=1) if self.storage == "none" else replace(self, storage="ram")
