"""``python -m manualnn explain``: a network's equations on the command line."""

import argparse
import json
import math
import sys
from typing import Any

import torch

from manualnn.nn import MLP, Flatten, Sequential
from manualnn.tools.checks.command import Mistake, write
from manualnn.tools.explanations import explain
from manualnn.tools.ledgers import DTYPES
from manualnn.tools.ledgers.command import (
    add_input_arguments,
    first_line,
    given,
    model_of,
    positive,
)

EPILOG = """
examples:
  python -m manualnn explain --hidden_units "[128, 64]" --dataset Digits
  python -m manualnn explain --hidden_units "[128, 64]" --image_shape 1,8,8 --activation tanh --plot net.svg
  python -m manualnn explain --numbers
  python -m manualnn explain --hidden_units "[4, 3]" --activation gelu --dropout 0.2 --numbers
  python -m manualnn explain torchvision:resnet18 --size 64 --batch_size 2

exit status: 0; 1 where a number differs from autograd's; 2 where the network cannot be explained
"""
TINY = {"hidden_units": [3], "image_shape": (1, 1, 2), "num_classes": 2, "batch_size": 2}


def add_arguments(parser):
    parser.add_argument(
        "target",
        nargs="?",
        help="a model instead of --hidden_units: torchvision:NAME; or package.module:Name of a Module class "
        "with its arguments, or of a function without arguments that returns a model",
    )
    network = parser.add_argument_group("a network of fully connected layers")
    network.add_argument(
        "--hidden_units",
        "--hidden-units",
        type=units,
        metavar="UNITS",
        help='of each hidden layer: "[128, 64]", or [] for none',
    )
    network.add_argument(
        "--dataset",
        help="whose images and classes it is for: Digits, MNIST, CIFAR10, ..., ImageFolder",
    )
    network.add_argument("--root", help="the folder of an ImageFolder")
    network.add_argument("--split", help="of EMNIST")
    network.add_argument(
        "--image_shape",
        "--image-shape",
        type=image_shape,
        metavar="SHAPE",
        help="instead of a dataset: channels, height, width, 1,8,8; or one number of inputs, 64",
    )
    network.add_argument("--num_classes", "--num-classes", type=positive, help="of the output (10)")
    network.add_argument("--activation", help="of the hidden layers: relu, tanh, gelu, ... (relu)")
    network.add_argument("--dropout", type=float, help="probability in hidden layers (0)")
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        "--batch",
        type=positive,
        help="m, how many examples (128; of a model 8)",
    )
    add_input_arguments(parser)
    parser.add_argument(
        "--numbers",
        action="store_true",
        help="work it through with numbers, a large network with few units; each step is checked against "
        "autograd",
    )
    parser.add_argument("--seed", type=int, default=0, help="of these numbers (0)")
    parser.add_argument("--json", metavar="FILE", help="write it as JSON; - for the output")
    parser.add_argument("--plot", metavar="FILE", help="draw it: .svg, .png or .pdf")
    parser.set_defaults(run=run)


def run(arguments):
    """The exit status: 0, or 1 where a number differs from autograd's."""
    if arguments.target is None:
        model, inputs, name = network(arguments)
    else:
        model, inputs, name = named(arguments)
    model.train(not arguments.eval)
    try:
        made = explain(model, *inputs, autocast=DTYPES.get(arguments.autocast), name=name)
        own = arguments.target is not None
        numbers = made.numbers(arguments.seed, own=own) if arguments.numbers else None
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise Mistake(f"{name} cannot be explained: {first_line(error)}") from error
    out = sys.stderr if arguments.json == "-" else None
    print(made, file=out)
    if numbers is not None:
        print(f"\n{numbers}", file=out)
    if arguments.json:
        content = json.loads(made.to_json())
        if numbers is not None:
            content["numbers"] = json.loads(numbers.to_json())
        write(arguments.json, json.dumps(content, ensure_ascii=False, indent=1))
    if arguments.plot:
        draw(made, arguments.plot)
    return 0 if numbers is None or numbers else 1


def network(arguments):
    """The network that the options state: (model, inputs, name)."""
    if arguments.input:
        raise Mistake("--input is of a model: give a target, or --image_shape and --batch_size")
    a = arguments
    shape, classes = a.image_shape, a.num_classes
    for option in ("root", "split"):
        if getattr(a, option) is not None and a.dataset is None:
            raise Mistake(f"--{option} belongs to --dataset")
    if a.dataset is not None:
        if shape or classes:
            raise Mistake("the dataset says --image_shape and --num_classes: leave them out")
        shape, classes = a.dataset_facts(a.dataset, a.root, a.split)
    elif a.hidden_units is None and not a.numbers:
        raise Mistake('give --hidden_units, such as "[128, 64]", or a model; --help shows examples')
    elif shape is None and not a.numbers:
        raise Mistake("give --dataset, such as Digits, or --image_shape, such as 1,8,8")
    tiny: dict[str, Any] = TINY if shape is None else {"hidden_units": [3]}
    hidden = tiny["hidden_units"] if a.hidden_units is None else a.hidden_units
    shape = shape or tiny["image_shape"]
    classes = classes or tiny.get("num_classes", 10)
    batch = a.batch_size or tiny.get("batch_size", 128)
    sizes = [math.prod(shape), *hidden, classes]
    dropout = 0.0 if a.dropout is None else a.dropout
    try:
        mlp = MLP(sizes, a.activation or "relu", dropout)
    except (TypeError, ValueError) as error:
        raise Mistake(first_line(error)) from error
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            mlp(x.flatten(1)[:2])
    except (RuntimeError, ValueError) as error:
        message = f"activation {a.activation!r} cannot be used in a hidden layer"
        raise Mistake(f"{message}: {first_line(error)}") from error
    return Sequential(Flatten(), mlp), [x], a.dataset or "MLP"


def named(arguments):
    """The model that the target names: (model, inputs, name)."""
    options = (
        "hidden_units",
        "dataset",
        "root",
        "split",
        "image_shape",
        "num_classes",
        "activation",
    )
    for option in (*options, "dropout"):
        if getattr(arguments, option) is not None:
            raise Mistake(f"--{option} shapes a network of its own, not {arguments.target}")
    arguments.batch = arguments.batch_size or 8
    model, name = model_of(arguments.target)
    return model, given(arguments), name


def draw(made, path):
    try:
        made.plot(path)
    except ImportError as error:
        raise Mistake(f"--plot needs matplotlib: {error}; pip install matplotlib") from error
    except OSError as error:
        raise Mistake(f"{path} cannot be written: {first_line(error)}") from error
    except ValueError as error:
        raise Mistake(f"--plot {path}: {first_line(error)}") from error


def units(text):
    text = text.strip()
    inside = text.removeprefix("[").removesuffix("]").replace(",", " ").split()
    if text.startswith("[") != text.endswith("]") or not all(
        part.isdecimal() and int(part) for part in inside
    ):
        raise argparse.ArgumentTypeError(f'{text!r} is no list of units; it reads "[128, 64]"')
    return [int(part) for part in inside]


def image_shape(text):
    parts = text.strip(" ()[]").replace("x", ",").replace("×", ",").split(",")
    if len(parts) not in (1, 3) or not all(
        part.strip().isdecimal() and int(part) for part in parts
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; it reads 1,8,8, or 64")
    return tuple(int(part) for part in parts)
