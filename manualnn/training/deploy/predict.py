"""`train.py predict --image`: class and probability of pictures, by a trained classifier."""

import csv
import io
import json
import sys
from pathlib import Path

import torch

from manualnn.tools.files import replacing_all
from manualnn.tools.table import aligned
from manualnn.training.deploy.output import check_output
from manualnn.training.deploy.parser import Parser, positive
from manualnn.training.deploy.pictures import Reader, find
from manualnn.training.errors import TrainingError
from manualnn.training.text.names import cell, shown

BATCH = 64  # pictures in memory at a time
FORMATS = ("table", "csv", "json")
DESCRIPTION = "Says the class of pictures and its probability, by a trained classifier."
EPILOG = """
A picture is read as the training read its own. A network trained on a folder of pictures with
--data.image_size takes any size, and scales and cuts it in the same way. One that was trained on
images of one size (MNIST: 28 x 28, grey) refuses another, unless --resize is given. Colours become
grey, or grey becomes colours, as the network needs it.

Without --image the test images of the run's dataset are predicted, into predictions.csv of the run's
folder; its options are those of `python train.py test --help`.

examples:
  python train.py predict --ckpt_path best --image digit.png
  python train.py predict --ckpt_path best.ckpt --image pictures/ --top 3 --output predicted.json

exit status: 0, or 2 where a picture or the checkpoint cannot be read
"""


def parser() -> Parser:
    made = Parser(prog="train.py predict", description=DESCRIPTION, epilog=EPILOG)
    made.add_argument(
        "--image",
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="pictures, or folders of them, with all that lie below",
    )
    made.add_argument("--top", type=positive, default=1, help="classes a picture, best first (1)")
    made.add_argument("--format", choices=FORMATS, help="by the ending of --output, or else table")
    made.add_argument("--output", metavar="FILE", help="write there, not to the terminal")
    made.add_argument(
        "--resize",
        action="store_true",
        help="scale and cut pictures of another size than the dataset's",
    )
    made.add_argument(
        "--invert",
        action="store_true",
        help="make light of dark first: MNIST's digits are light on a dark ground",
    )
    made.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda, ...")
    return made


def run(args: list[str]) -> int:
    """The exit status: 0."""
    options = parser()
    given = options.parse_args(args)
    form = given.format or _format_of(given.output)
    paths, passed = find(given.image)
    trained = options.trained(given)
    if given.output:
        read = [*paths, trained.checkpoint, *filter(None, [given.config])]
        check_output(given.output, form, read)
    if given.top > len(trained.class_names):
        raise TrainingError(f"--top {given.top}: there are {len(trained.class_names)} classes")
    try:
        trained.to(given.device)
    except (RuntimeError, AssertionError) as error:  # PyTorch's word for a device that is not there
        raise TrainingError(f"--device {given.device}: {str(error).splitlines()[0]}") from error
    reader = Reader(trained.reading, given.resize, given.invert)
    batches = reader.batches(paths, BATCH)
    judged = [trained.judged(levels) for levels in batches]
    best = torch.cat([one.order[:, : given.top] for one in judged])
    values = torch.cat([one.probabilities for one in judged]).gather(1, best)
    class_names = [shown(name) for name in trained.class_names]
    names = [[class_names[i] for i in row] for row in best.tolist()]
    rows = [
        (shown(path), list(zip(classes, values, strict=True)))
        for path, classes, values in zip(paths, names, values.tolist(), strict=True)
    ]
    text = {"table": _table, "csv": _csv, "json": _json}[form](rows)
    _write(text, given.output)
    if given.output:
        print(f"{len(rows)} predictions: {shown(given.output)}")
    reader.print_notes()
    if passed:
        listed = ", ".join(f"{count} {what}" for what, count in passed.items())
        print(f"note: left out: {shown(listed)}", file=sys.stderr)
    return 0


def _format_of(output: str | None) -> str:
    ending = Path(output or "").suffix.lower().lstrip(".")
    return ending if ending in FORMATS else "table"


def _table(rows: list[tuple]) -> str:
    lines = [("image", "class", "probability")]
    for image, classes in rows:
        for rank, (name, value) in enumerate(classes):
            lines.append(("" if rank else image, name, f"{value:.4f}"))
    return "".join(f"{line[2:]}\n" for line in aligned(lines))


def _csv(rows: list[tuple]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["image", "class", "probability"])
    for image, classes in rows:
        lines.writerows((cell(image), cell(name), _digits(value)) for name, value in classes)
    return text.getvalue()


def _json(rows: list[tuple]) -> str:
    listed = [
        {
            "image": image,
            "predictions": [
                {"class": name, "probability": float(_digits(value))} for name, value in classes
            ],
        }
        for image, classes in rows
    ]
    return json.dumps(listed, indent=2, ensure_ascii=False) + "\n"


def _digits(value: float) -> str:
    return f"{value:.9g}"  # a float32, to the bit


def _write(text: str, output: str | None) -> None:
    if output:
        try:
            with replacing_all(Path(output)) as new:
                new.write_text(text, encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"--output {output} cannot be written: {error.strerror}") from error
    else:
        print(text, end="")
