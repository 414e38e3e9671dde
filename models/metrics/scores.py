"""The scores of personalisation papers, on embeddings.

Ruiz et al. 2022 (DreamBooth, arXiv 2208.12242), section 4.1 and the supplement on prior preservation:

    DINO, CLIP-I  mean over all pairs of cos(sample, real), with DINO's and CLIP's embeddings
    CLIP-T        mean of cos(sample, prompt), with CLIP's
    PRES          mean over all pairs of cos(class sample, real): low if the class has not turned into the subject
    DIV           mean over all pairs of different samples of one prompt of a perceptual distance; here
                  1 - cos with DINO's embeddings (our choice: the paper's LPIPS is another network)

A score has a meaning beside its ceiling only: the mean over pairs of *different* real pictures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def between(a: Tensor, b: Tensor) -> float:
    """Mean of cos(a_i, b_j) over all pairs, of ``a [n, d]`` and ``b [m, d]``."""
    return (unit(a) @ unit(b).T).mean().item()


def within(a: Tensor) -> float:
    """Mean of cos(a_i, a_j) over all pairs of different rows of ``a [n, d]``.

    Raises:
        ValueError: there is one row only, so no pair.
    """
    if len(a) < 2:
        raise ValueError("one picture makes no pair; give at least two")
    cosines = unit(a) @ unit(a).T
    return ((cosines.sum() - cosines.diagonal().sum()) / (len(a) * (len(a) - 1))).item()


def unit(a: Tensor) -> Tensor:
    """Rows of length 1, in float32."""
    return F.normalize(a.float(), dim=-1)


def subject_fidelity(samples: Tensor, real: Tensor) -> float:
    """DINO or CLIP-I, by whose embeddings these are."""
    return between(samples, real)


def ceiling(real: Tensor) -> float | None:
    """What real pictures of the subject reach among themselves; None for one picture."""
    return within(real) if len(real) > 1 else None


def prompt_fidelity(samples: Tensor, prompt: Tensor) -> float:
    """CLIP-T, of ``samples [n, d]`` and one ``prompt [1, d]``."""
    return between(samples, prompt)


def prior_preservation(class_samples: Tensor, real: Tensor) -> float:
    """PRES; low is good."""
    return between(class_samples, real)


def diversity(samples: Tensor) -> float:
    """DIV; high is good."""
    return 1 - within(samples)


def all_finite(embeddings: Tensor) -> bool:
    """Whether they can be compared."""
    return bool(torch.isfinite(embeddings).all()) and bool(embeddings.float().norm(dim=-1).min() > 0)
