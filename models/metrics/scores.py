"""Scores of the personalization papers, computed from embeddings.

Ruiz et al. 2022 (DreamBooth, arXiv 2208.12242), section 4.1 and the supplement on prior preservation:

    DINO, CLIP-I  mean over all pairs of cos(sample, real), with DINO's and CLIP's embeddings
    CLIP-T        mean of cos(sample, prompt), with CLIP's
    PRES          mean over all pairs of cos(class sample, real): low if the class has not turned into the subject
    DIV           mean over all pairs of different samples of one prompt of a perceptual distance; here
                  1 - cos with DINO's embeddings (our choice: the paper's LPIPS is another network)

A score is meaningful only next to its ceiling, the mean over pairs of *different* real images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def between(a: Tensor, b: Tensor) -> float:
    """Return the mean of cos(a_i, b_j) over all pairs, of ``a [n, d]`` and ``b [m, d]``."""
    return (unit(a) @ unit(b).T).mean().item()


def within(a: Tensor) -> float:
    """Return the mean of cos(a_i, a_j) over all pairs of different rows of ``a [n, d]``.

    Raises:
        ValueError: there is only one row, which makes no pair.
    """
    if len(a) < 2:
        raise ValueError("one image makes no pair; give at least two")
    cosines = unit(a) @ unit(a).T
    return ((cosines.sum() - cosines.diagonal().sum()) / (len(a) * (len(a) - 1))).item()


def unit(a: Tensor) -> Tensor:
    """Return the rows of ``a [n, d]`` scaled to length 1, in float32."""
    return F.normalize(a.float(), dim=-1)


def subject_fidelity(samples: Tensor, real: Tensor) -> float:
    """Return DINO or CLIP-I, depending on the encoder of ``samples [n, d]`` and ``real [m, d]``."""
    return between(samples, real)


def ceiling(real: Tensor) -> float | None:
    """Return the subject fidelity of the real images among themselves; None for a single image."""
    return within(real) if len(real) > 1 else None


def prompt_fidelity(samples: Tensor, prompt: Tensor) -> float:
    """Return CLIP-T of ``samples [n, d]`` and one ``prompt [1, d]``."""
    return between(samples, prompt)


def prior_preservation(class_samples: Tensor, real: Tensor) -> float:
    """Return PRES; lower is better."""
    return between(class_samples, real)


def diversity(samples: Tensor) -> float:
    """Return DIV; higher is better."""
    return 1 - within(samples)


def all_finite(embeddings: Tensor) -> bool:
    """Return whether the embeddings ``[n, d]`` are finite and none is zero, which cosines require."""
    return bool(torch.isfinite(embeddings).all()) and bool(embeddings.float().norm(dim=-1).min() > 0)
