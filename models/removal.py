"""How much of a model a chain of PaRa takes away."""

from .adapter_set import AdapterSet
from .adapters import PaRa

FORTIETH = 40
"""A layer of d outputs should lose at most d / 40 directions in all (PaRa, arXiv 2406.05641)."""


def removed_rank(adapter: AdapterSet) -> dict[str, int]:
    """Layer name -> the most directions of its output that the chain's PaRa links remove together."""
    removed: dict[str, int] = {}
    for link in adapter.chain:
        for name, part in link.adapters.items():
            if isinstance(part, PaRa):
                removed[name] = removed.get(name, 0) + part.rank
    return removed


def removal_warning(adapter: AdapterSet) -> str | None:
    """A sentence that names the worst layer, if any loses more than its share; else None."""
    outputs = {name: target.matrix[0] for name, target in adapter.targets().items()}
    removed = removed_rank(adapter)
    over = [name for name, rank in removed.items() if rank * FORTIETH > outputs[name]]
    if not over:
        return None
    worst = max(over, key=lambda name: removed[name] / outputs[name])
    return (
        f"PaRa removes {removed[worst]} of the {outputs[worst]} directions of {worst}, and on {len(over)} layers more "
        f"than a fortieth, beyond which a model loses what it knew; lower the rank, or combine fewer"
    )
