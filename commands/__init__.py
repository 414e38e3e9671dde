"""Work of the nodes from a command line, on as many processes and machines as PyTorch's torchrun starts."""
