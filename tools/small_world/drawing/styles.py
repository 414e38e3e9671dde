"""Apply a style to a painted image [3, n, n] in [0, 1]: photo, sketch, pixel art, inverted, sepia or comic."""

from __future__ import annotations

import numpy as np

from .shapes import wave

PIXEL = 3
"""Side of a block of pixel art in a 64 x 64 image."""


def gray(image: np.ndarray) -> np.ndarray:
    """Return the lightness, [n, n]."""
    return image[0] * np.float32(0.3) + image[1] * np.float32(0.59) + image[2] * np.float32(0.11)


def edges(image: np.ndarray) -> np.ndarray:
    """Return the largest step of any channel to the next pixel on the right or below, [n, n]."""
    strength = np.zeros_like(image)
    strength[:, :, :-1] = np.abs(image[:, :, 1:] - image[:, :, :-1])
    strength[:, :-1] = np.maximum(strength[:, :-1], np.abs(image[:, 1:] - image[:, :-1]))
    return np.maximum(np.maximum(strength[0], strength[1]), strength[2])


def sketch(image: np.ndarray) -> np.ndarray:
    """Return a pencil drawing on paper: outlines, and hatching in dark areas."""
    light = gray(image)
    steps = np.arange(light.shape[0], dtype=np.float32) * np.float32(64 / light.shape[0] / 4)
    hatch = wave(steps[None, :] + steps[:, None]) * np.minimum(np.maximum(np.float32(0.62) - light, 0), np.float32(0.4))
    outline = np.minimum(np.maximum(edges(image) - np.float32(0.09), 0) * np.float32(1.9), np.float32(0.72))
    paper = np.float32(0.9) + light * np.float32(0.08) - hatch * np.float32(0.8)
    value = np.maximum(paper - outline, np.float32(0.06))
    return np.stack((value, value * np.float32(0.99), value * np.float32(0.96)))


def sepia(image: np.ndarray) -> np.ndarray:
    """Return an old brown photograph with dark corners."""
    light = gray(image)
    t = np.arange(light.shape[0], dtype=np.float32) * np.float32(2 / light.shape[0]) - np.float32(1)
    light = light * (np.float32(1.04) - np.float32(0.14) * (t * t)[None, :] - np.float32(0.14) * (t * t)[:, None])
    light = light * np.float32(0.9) + np.float32(0.06)
    return np.stack((light * np.float32(1.1) + np.float32(0.04), light * np.float32(0.88), light * np.float32(0.62)))


def comic(image: np.ndarray) -> np.ndarray:
    """Return a comic with flat, strong colors and black outlines."""
    light = gray(image)
    strong = light + (image - light) * np.float32(1.35)
    flat = np.floor(strong * np.float32(5) + np.float32(0.5)) * np.float32(0.2)
    ink = np.minimum(np.maximum(edges(image) - np.float32(0.27), 0) * np.float32(3), 1)
    return flat * (np.float32(1) - ink)


def pixel(image: np.ndarray) -> np.ndarray:
    """Return few, strong colors; render() draws this style with few pixels and repeats each."""
    light = gray(image)
    strong = light + (image - light) * np.float32(1.2)
    return np.floor(strong * np.float32(8) + np.float32(0.5)) * np.float32(0.125)


def inverted(image: np.ndarray) -> np.ndarray:
    """Return a negative."""
    return np.float32(1) - image


def photo(image: np.ndarray) -> np.ndarray:
    """Return the image unchanged."""
    return image


STYLES = {"photo": photo, "sketch": sketch, "pixel": pixel, "inverted": inverted, "sepia": sepia, "comic": comic}
