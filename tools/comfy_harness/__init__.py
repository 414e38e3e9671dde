"""Provide tests, demo and benchmarks with a real ComfyUI server, small checkpoints, and the pack imported by path.

No module of the pack imports this one.
"""
