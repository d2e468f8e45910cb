"""The one exception of the data package."""

from collections.abc import Sequence

MOST_NAMED = 10  # faults in one message


class DataError(ValueError):
    """The data cannot be used; the message is one line for the user who asked for it."""

    def __init__(self, message: str):
        # A DataLoader worker's exception arrives rebuilt from its whole traceback, the original
        # message last. The user wants that last part alone.
        if message.startswith("Caught "):
            message = message.rsplit("DataError: ", 1)[-1].strip()
        super().__init__(message)


def together(faults: Sequence[DataError]) -> DataError:
    """One error that names all of them, or the first few and how many there are."""
    if len(faults) == 1:
        return faults[0]
    named = "; ".join(map(str, faults[:MOST_NAMED]))
    more = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
    return DataError(f"{len(faults)} pictures cannot be used: {named}{more}")
