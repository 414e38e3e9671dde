"""Share development tools between dev.py, tests, demo and benchmarks; the node pack never imports them."""
