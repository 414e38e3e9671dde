"""Scores: whether samples show the subject, follow the prompt, and have left the class alone."""

from .compare import CompareSheet
from .prior import PriorScore
from .prompt import PromptFidelity
from .subject import SubjectFidelity

__all__ = ["CompareSheet", "PriorScore", "PromptFidelity", "SubjectFidelity"]
