"""Pure torch: adapter families, chains of them, where they sit, how they are stored.

Nothing here knows ComfyUI or a training loop.
"""
