"""PaRa, parameter rank reduction (arXiv 2406.05641)."""
