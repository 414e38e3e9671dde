"""Fidelity metrics: DINO, CLIP-I, CLIP-T, PRES, DIV."""
