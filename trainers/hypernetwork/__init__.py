"""HyperDreamBooth training (arXiv 2307.06949): the hypernetwork on a subject bank."""
