"""DreamBooth training (arXiv 2208.12242): configuration, loss, trainer."""
