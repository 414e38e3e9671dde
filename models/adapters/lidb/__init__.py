"""LiDB, the lightweight DreamBooth of HyperDreamBooth (arXiv 2307.06949)."""
