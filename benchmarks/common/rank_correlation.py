"""Measure by Spearman's rank correlation whether a score orders subjects and adapters as the oracle does."""

import math
import statistics
from collections.abc import Sequence

import torch
from common.harness import Row
from torch import Tensor

ORDERS = {"clip_i": "identity", "pres": "class_identity", "div": "diversity"}
"""Score -> the oracle's figure for the same images."""
FEWEST = 3
"""Smallest number of people for which a correlation is reported."""


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the correlation of the ranks; ties share their mean rank. NaN if all values of one side are equal."""
    return torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1].item()


def _ranks(values: Sequence[float]) -> Tensor:
    v = torch.tensor(values, dtype=torch.float64)
    return (v[:, None] > v).sum(1) + 0.5 * ((v[:, None] == v).sum(1) - 1)


def correlate_subjects(rows: Sequence[Row]) -> Row:
    """Return ``rank_<score>`` of one method over its people; empty for fewer than :data:`FEWEST`."""
    if len(rows) < FEWEST:
        return {}
    return {
        f"rank_{score}": spearman([row[score] for row in rows], [row[truth] for row in rows])
        for score, truth in ORDERS.items()
    }


def correlate_rows(methods: Sequence[Sequence[Row]]) -> Row:
    """Return the mean and the standard error over methods of :func:`correlate_subjects`.

    The mean over methods compares subjects only. A method that makes all subjects alike orders none and is left out.
    """
    return _mean([order for rows in methods if (order := correlate_subjects(rows))])


def correlate_methods(methods: Sequence[Sequence[Row]]) -> Row:
    """Return the mean and the standard error over subjects of how a score orders the methods for one subject.

    Args:
        methods: rows of the same people in the same order; a subject for whom a method failed is left out.
    """
    people = [
        rows for rows in zip(*methods, strict=True) if all(truth in row for row in rows for truth in ORDERS.values())
    ]
    return _mean([order for rows in people if (order := correlate_subjects(rows))])


def _mean(found: Sequence[Row]) -> Row:
    """Return mean and standard error of each correlation."""
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
