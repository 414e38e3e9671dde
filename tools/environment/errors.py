"""Define the error that dev.py prints without a traceback."""


class DevError(Exception):
    """Report a failure that the developer can remedy; the message tells how."""
