"""Training data: image folders, resizing, augmentation, encoded datasets."""
