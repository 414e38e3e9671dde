"""Subject banks: the trained parameters of many subjects, on disk."""
