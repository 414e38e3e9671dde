"""Nodes that score samples: subject fidelity, prompt fidelity, prior preservation and diversity."""

from .compare import CompareSheet
from .prior_diversity import PriorScore
from .prompt_fidelity import PromptFidelity
from .subject_fidelity import SubjectFidelity

__all__ = ["CompareSheet", "PriorScore", "PromptFidelity", "SubjectFidelity"]
