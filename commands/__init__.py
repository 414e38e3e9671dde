"""Command-line versions of nodes, for as many processes and machines as PyTorch's torchrun starts."""
