"""Whether a score orders subjects, and adapters of a subject, as the oracle does: Spearman's rank correlation."""

import math
import statistics
from collections.abc import Sequence

import torch
from common.harness import Row
from torch import Tensor

ORDERS = {"clip_i": "identity", "pres": "class_identity", "div": "diversity"}
"""Score -> what the oracle says of the same images."""
FEWEST = 3
"""People, of which an order says something."""


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of the ranks; equal values share the mean of theirs. NaN where all of one side are equal."""
    return torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1].item()


def _ranks(values: Sequence[float]) -> Tensor:
    v = torch.tensor(values, dtype=torch.float64)
    return (v[:, None] > v).sum(1) + 0.5 * ((v[:, None] == v).sum(1) - 1)


def of_subjects(rows: Sequence[Row]) -> Row:
    """``rank_<score>`` of one way to personalize, over its people; nothing of too few."""
    if len(rows) < FEWEST:
        return {}
    return {
        f"rank_{score}": spearman([row[score] for row in rows], [row[truth] for row in rows])
        for score, truth in ORDERS.items()
    }


def of_rows(ways: Sequence[Sequence[Row]]) -> Row:
    """The same for subjects: the mean over ways to personalize, so that ways are not compared, and its standard error
    over them. A way by which all subjects come out alike orders none."""
    return _mean([order for rows in ways if (order := of_subjects(rows))])


def of_ways(ways: Sequence[Sequence[Row]]) -> Row:
    """For each subject, how a score orders what ways to personalize made of it: the mean over subjects, and its error.

    Args:
        ways: rows of the same people in the same order; one that failed with somebody leaves that subject out.
    """
    people = [
        rows for rows in zip(*ways, strict=True) if all(truth in row for row in rows for truth in ORDERS.values())
    ]
    return _mean([order for rows in people if (order := of_subjects(rows))])


def _mean(found: Sequence[Row]) -> Row:
    """Mean and standard error of each correlation."""
    row: Row = {}
    if not found:
        return row
    for name in found[0]:
        orders = [order[name] for order in found if not math.isnan(order[name])]
        if orders:
            row[name] = statistics.mean(orders)
        if len(orders) > 1:
            row[f"{name}_error"] = statistics.stdev(orders) / len(orders) ** 0.5
    return row
