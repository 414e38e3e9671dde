"""The pack's own sockets, and the category its nodes stand in."""

from comfy_api.latest import io

Adapter = io.Custom("HYPERBOOTH_ADAPTER")
Method = io.Custom("HYPERBOOTH_METHOD")
Options = io.Custom("HYPERBOOTH_OPTIONS")
Subject = io.Custom("HYPERBOOTH_SUBJECT")

CATEGORY = "HyperBooth"

BIGGEST_SEED = 0xFFFFFFFFFFFFFFFF
