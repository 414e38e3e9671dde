"""Develop HyperBooth: `python dev.py test`, `demo`, `serve`, `bench`. Needs only Python 3.10 or newer.

The first run builds an environment (ComfyUI and its requirements) in the cache folder; later runs reuse it.
This file only checks the Python version, so that an old Python gets a sentence instead of a SyntaxError.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 (this is the very check)
    sys.exit("dev.py needs Python 3.10 or newer; this one is %d.%d." % sys.version_info[:2])  # noqa: UP031

from tools.environment.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
