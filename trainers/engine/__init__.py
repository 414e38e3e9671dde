"""The training engine: loop, optimizers, checkpoints, memory plan, processes, random generators."""
