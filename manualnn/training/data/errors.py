"""The one exception of the data package."""


class DataError(ValueError):
    """The data cannot be used; the message is one line for the person who asked for it."""

    def __init__(self, message: str):
        # A DataLoader worker's exception arrives rebuilt from its whole traceback, the original
        # message last. A person wants that last part alone.
        if message.startswith("Caught "):
            message = message.rsplit("DataError: ", 1)[-1].strip()
        super().__init__(message)
