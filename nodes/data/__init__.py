"""Nodes that make training data."""
