"""Nodes of HyperDreamBooth: subject banks, hypernetworks, predictions."""
