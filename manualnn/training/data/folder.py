"""The user's own pictures: which files of a folder are meant, of which class and part each is.

Either `root/class/picture.png`, or `root/train/class/picture.png` with parts for validation and test
beside it or without them. Nothing is opened here.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from manualnn.training.data.errors import DataError
from manualnn.training.text.names import few, shown

Pictures = list[tuple[str, int]]  # (path, label)

# What file managers leave beside pictures, without a dot.
_LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
_PART = re.compile(
    r"(?:(train|training)|(val|valid|validation)|(test|testing))"
    r"(?:[ _-]?(?:set|data|images))?[ _-]?\d*",
    re.IGNORECASE,
)


@cache
def endings() -> tuple[str, ...]:
    """Of the names of pictures that are read, in lower case."""
    from PIL import features
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return (*IMG_EXTENSIONS, ".jfif", ".gif", *([".avif"] if features.check("avif") else []))


def part_of(name: str) -> str | None:
    """ "train", "val" or "test" of a folder that is called like one, such as Training, valid, test1."""
    found = _PART.fullmatch(name)
    return ("train", "val", "test")[found.lastindex - 1] if found else None


@dataclass(frozen=True)
class Folder:
    """What lies in the folder. `val` or `test` is None where it has to be split off `train`.

    Attributes:
        train: Empty in a folder that holds a part for the test or the validation alone.
        called: The names of the parts' folders, by part; empty where there are none.
        left_out: How many files and folders were passed over, by what they are.
    """

    class_names: tuple[str, ...]
    train: Pictures
    val: Pictures | None
    test: Pictures | None
    called: dict[str, str] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)

    @property
    def pictures(self) -> Pictures:
        return [*self.train, *(self.val or ()), *(self.test or ())]


def scan(root: Path, known: Sequence[str] | None = None) -> Folder:
    """Lists the pictures without opening one.

    DataError: no folder, not readable, fewer than two classes, a class called like a part, pictures
    without a class folder, a class in another part that `train` lacks, or that is not among the `known`.
    """
    walk = Walk(root)
    names, loose = walk.entries(str(root))
    for entry in _listed(str(root)):
        if entry.is_symlink() and part_of(entry.name) and entry.name not in names:
            raise DataError(
                f"{shown(root / entry.name)} is a link that leads nowhere, or to what lies in "
                f"{shown(root)} anyway: as a part it would be empty. Take it out, or mend it"
            )
    parts = {part: name for name in names if (part := part_of(name))}
    called = {part: parts[part] for part in ("train", "val", "test") if part in parts}
    if called:
        return _with_parts(walk, root, names, called, len(loose), known)
    class_names = _among(known, root, _classes(root, names, loose, least=1 if known else 2))
    train = _pictures(walk, root, class_names, names)
    return Folder(class_names, train, None, None, {}, _counts(walk, len(loose)))


def _with_parts(
    walk: "Walk",
    root: Path,
    names: list[str],
    called: dict[str, str],
    loose: int,
    known: Sequence[str] | None,
) -> Folder:
    if strange := [name for name in names if not part_of(name)]:
        raise DataError(
            f"{shown(root)} holds {few(strange)} beside {few([*called.values()])}, which is the name "
            "of a part: beside train, val and test lie no classes, and no other parts. Call it val or test "
            "if it is one of them, or take it out"
        )
    if len(called) < len(names):
        raise DataError(f"{shown(root)} holds {few(names)}: two of them are the same part")
    inside = {}
    for part, name in called.items():
        classes, straight = walk.entries(str(root / name))
        inside[part] = _classes(root / name, classes, straight, least=1)
        loose += len(straight)
    # A folder for the test alone has the classes that are there.
    there = inside.get("train") or sorted({name for there in inside.values() for name in there})
    there = _classes(root / called.get("train", ""), list(there), [], least=1 if known else 2)
    class_names = _among(known, root, there)
    found = {}
    for part, name in called.items():
        if unknown := [c for c in inside[part] if c not in class_names]:
            raise DataError(
                f"{shown(root / name / unknown[0])}: no class of that name in "
                f"{shown(root / called.get('train', ''))}"
            )
        found[part] = _pictures(walk, root / name, class_names, inside[part])
        if not found[part]:
            raise DataError(f"{shown(root / name)} holds no picture ({', '.join(endings())})")
    parts = found.get("train", []), found.get("val"), found.get("test")
    return Folder(class_names, *parts, called, _counts(walk, loose))


def _among(known: Sequence[str] | None, root: Path, there: tuple[str, ...]) -> tuple[str, ...]:
    if strange := [name for name in there if name not in (known or there)]:
        raise DataError(f"{shown(root)} holds {few(strange)}; the classes are {few(known)}")
    return tuple(known or there)


def _counts(walk: "Walk", loose: int) -> Counter:
    return +(walk.left_out + Counter({"outside the class folders": loose}))


def _classes(root: Path, names: list[str], loose: list[str], least: int = 2) -> tuple[str, ...]:
    """The names, checked: those of the class folders in `root`, in which pictures lie loose too."""
    if not names and loose:
        raise DataError(
            f"{shown(root)} holds no class, its pictures lie straight in it (pictures directly in it "
            "are not read, by predict neither): one subfolder a class is needed; of pictures without "
            "a class, predict --image says one"
        )
    if not names:
        raise DataError(
            f"{shown(root)} holds no class: one subfolder a class is needed, two at least"
        )
    if called := [name for name in names if part_of(name)]:
        raise DataError(
            f"{shown(root / called[0])} would be a class called like a part (train, val, test): "
            "rename it, or take it out"
        )
    if len(names) < least:
        inside = sorted(e.name for e in _listed(str(root / names[0])) if e.is_dir())
        raise DataError(
            f"{shown(root)} holds one class only ({few(names)}); two at least are needed"
            + (f": is {shown(root / names[0])} meant, which holds {few(inside)}?" if inside else "")
        )
    return tuple(names)


def _pictures(
    walk: "Walk", root: Path, class_names: Sequence[str], there: Sequence[str]
) -> Pictures:
    """Of the classes in `root`, whose folders need not all be `there`."""
    found: Pictures = []
    for label, name in enumerate(class_names):
        folder = root / name
        paths = walk.pictures(str(folder)) if name in there else []
        inner = {Path(path).relative_to(folder).parts[0] for path in paths}
        if len({part_of(name) for name in inner} - {None}) > 1:
            raise DataError(
                f"{shown(folder)} holds parts ({few(sorted(filter(part_of, inner)))}); they lie above "
                "the classes: train/class, not class/train"
            )
        found += [(path, label) for path in paths]
    return found


class Walk:
    """A way through the folders below `root` that meets each picture once.

    Passed over, and counted in `left_out`: what is hidden, files without the ending of a picture,
    pipes, sockets, devices, broken links, and links to what is met at its own place: one that leads
    back up would give every class the pictures of all.
    """

    def __init__(self, root: str | Path):
        self.left_out: Counter[str] = Counter()
        self._root = os.path.realpath(root)

    def entries(self, place: str) -> tuple[list[str], list[str]]:
        """(subfolders, pictures) of one folder: their names, in order."""
        folders, pictures = [], []
        for entry in sorted(_listed(place), key=lambda entry: entry.name):
            if kind := self._passed_over(entry):
                self.left_out[kind] += 1
            else:
                (folders if entry.is_dir() else pictures).append(entry.name)
        return folders, pictures

    def pictures(self, place: str) -> list[str]:
        """Every picture below a folder: of each folder first its own."""
        found: list[str] = []
        waiting, met = [place], {os.path.realpath(place)}
        while waiting:
            here = waiting.pop()
            folders, pictures = self.entries(here)
            found += [os.path.join(here, name) for name in pictures]
            for folder in reversed([os.path.join(here, name) for name in folders]):
                if (real := os.path.realpath(folder)) in met:
                    self.left_out["linked back"] += 1
                else:
                    met.add(real)
                    waiting.append(folder)
        return found

    def _passed_over(self, entry: os.DirEntry) -> str | None:
        if _is_hidden(entry.name):
            return "hidden"
        if entry.is_symlink():
            try:
                entry.stat()
            except OSError:
                return "with a broken link"
            if self._leads_back(os.path.realpath(entry.path)):
                return "linked back"
        if entry.is_dir():
            return None
        if not entry.is_file():
            return "no file (a pipe, a socket, a device)"
        ending = os.path.splitext(entry.name)[1].lower()
        return None if ending in endings() else ending or "without an ending"

    def _leads_back(self, real: str) -> bool:
        shared = os.path.commonpath([real, self._root])
        if shared != self._root:
            return shared == real  # the folder that `root` lies in, or one further up
        # A hidden folder in it is not met: git-annex and DVC keep there what the links lead to.
        return not any(map(_is_hidden, real[len(self._root) :].split(os.sep)))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _listed(place: str) -> list[os.DirEntry]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except FileNotFoundError as fault:
        raise DataError(
            f"the picture folder {shown(Path(place).resolve())} does not exist; point --data.root at "
            "a folder with one subfolder a class"
        ) from fault
    except OSError as fault:
        raise DataError(
            f"the picture folder {shown(place)} cannot be read: {fault.strerror}"
        ) from fault
