"""The hypernetwork of HyperDreamBooth (arXiv 2307.06949): images in, LiDB parameters out."""
