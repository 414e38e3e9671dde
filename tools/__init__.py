"""Development tools shared by dev.py, tests, demo and benchmarks; the node pack never imports them."""
