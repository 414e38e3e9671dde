"""Describe what an image shows: identities, scenes, captions, and the ground truth."""
