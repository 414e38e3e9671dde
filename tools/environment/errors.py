"""The one kind of failure the developer is told about in plain words."""


class DevError(Exception):
    """Something went wrong that the developer can do something about; the message says what."""
