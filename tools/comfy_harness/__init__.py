"""What tests, demo and benchmarks share: a real ComfyUI server, small checkpoints, the pack by path.

Nothing of the pack imports this.
"""
