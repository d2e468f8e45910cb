"""Which pictures train, which validate, which test: decided by each picture's own name."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence


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
    test picture. Two exceptions, for folders of a few pictures: a class without a training picture
    gets one, and so does a part that was asked for and has none; a checkpoint knows what it was
    trained on all the same.

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
    for part, fraction in (("test", test_fraction), ("val", val_fraction)):
        if fraction and part not in parts:
            training = [[row for row in rows if parts[row] == "train"] for rows in classes.values()]
            spare = [row for rows in training if len(rows) > 1 for row in rows]
            if spare:
                parts[min(spare, key=places.__getitem__)] = part
    return parts


def _place(name: str, seed: int) -> float:
    # A Mac writes é as two characters, others as one.
    key = f"{seed}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
