"""Scores: whether samples show the subject, follow the prompt, and have left the class alone."""

from .compare import CompareSheet
from .prior_diversity import PriorScore
from .prompt_fidelity import PromptFidelity
from .subject_fidelity import SubjectFidelity

__all__ = ["CompareSheet", "PriorScore", "PromptFidelity", "SubjectFidelity"]
