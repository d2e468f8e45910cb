"""Which pictures train, which validate, which test: decided by each picture's own name."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence


def split(
    names: Sequence[str],
    labels: Sequence[int],
    seed: int,
    val_fraction: float,
    test_fraction: float,
) -> list[str]:
    """The part of each picture: "train", "val" or "test".

    A hash of (seed, name) is a number in 0 to 1, and the part is where it falls: 0 to test_fraction
    is the test. So a picture that comes or goes moves no other, and another val_fraction changes no
    test picture. The share of a part is right on average, of few pictures only roughly.

    Three exceptions, of which only small classes know: a class without a training picture gets one; one
    that is due half a test or validation picture gets one; and so does a part that was asked for and
    has none. A picture may leave a part again when another one comes that belongs there; a checkpoint
    knows what it was trained on all the same.

    Args:
        names: Relative to the folder, with "/" between the parts of a name.
    """
    places = [_place(name, seed) for name in names]
    val_end = test_fraction + (1 - test_fraction) * val_fraction
    parts = ["test" if p < test_fraction else "val" if p < val_end else "train" for p in places]
    classes = defaultdict(list)
    for row, label in enumerate(labels):
        classes[label].append(row)
    for rows in classes.values():
        if all(parts[row] != "train" for row in rows):
            parts[max(rows, key=places.__getitem__)] = "train"

    def give(part: str, groups: Collection[Sequence[int]]) -> None:
        """A picture of these classes to a part that has none of them; no class gives its last."""
        training = [[row for row in rows if parts[row] == "train"] for rows in groups]
        spare = [row for rows in training if len(rows) > 1 for row in rows]
        if spare and not any(parts[row] == part for rows in groups for row in rows):
            parts[min(spare, key=places.__getitem__)] = part

    for part, share in (("test", test_fraction), ("val", val_end - test_fraction)):
        for rows in classes.values():
            if share * len(rows) >= 0.5:
                give(part, [rows])
        if share:
            give(part, classes.values())
    return parts


def _place(name: str, seed: int) -> float:
    # A Mac writes é as two characters, others as one.
    key = f"{seed}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
