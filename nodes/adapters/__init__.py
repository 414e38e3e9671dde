"""Nodes that apply, combine, save, load and describe adapters."""
