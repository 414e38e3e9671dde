"""Notes of the report: what a user should know about a run that succeeded."""

import logging

from ...models.adapters.stack import AdapterStack
from ...models.metadata.summary import removal_warning
from ..engine.state import History
from .config import DreamBoothConfig

logger = logging.getLogger("hyperbooth")


def removal_warnings(adapter: AdapterStack) -> list[str]:
    """Return a warning if the stack's PaRa adapters remove many directions; it is logged as well."""
    warning = removal_warning(adapter)
    if warning is None:
        return []
    logger.warning("%s", warning)
    return [f"warning: {warning}"]


def whole_network_notes(config: DreamBoothConfig, history: History) -> list[str]:
    """Return whether training without the removed blocks reduced the loss of the whole network."""
    if config.hollow is None or len(history.divergence_checks) < 2:
        return []
    first, last = (loss for _, loss in (history.divergence_checks[0], history.divergence_checks[-1]))
    measured = f"loss of the whole network on the first image {last:.4f}, before training {first:.4f}"
    if last < first:
        return [measured]
    warning = f"{measured}: too many blocks were removed, or too little was learned; lower fraction in Hollowed Net"
    logger.warning("%s", warning)
    return [f"warning: {warning}"]
