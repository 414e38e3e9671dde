"""Adapters, hypernetworks, banks and metrics as plain torch: their mathematics and their files.

Nothing here knows ComfyUI or a training loop.
"""
