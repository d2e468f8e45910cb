"""``python -m manualnn ledger``: the ledger on the command line."""

import argparse
import sys

import torch

from manualnn.conversion import convert
from manualnn.tools.checks.command import Mistake, built, random_input, resolve, write
from manualnn.tools.ledgers import DTYPES, ledger
from manualnn.tools.ledgers.report import bytes_of

EPILOG = """
examples:
  python -m manualnn ledger torchvision:resnet50 --size 224 --batch 8
  python -m manualnn ledger torchvision:vit_b_16 --autocast bf16 --memory 24GiB --plot saved.png
  python -m manualnn ledger mypackage:build_model --input 16,3,32,32 --all
  python -m manualnn ledger 'torch.nn:Linear(784, 10)' --input 128,784

exit status: 0, or 2 where the model cannot be measured
"""


def add_arguments(parser):
    parser.add_argument(
        "target",
        help="torchvision:NAME, a model of torchvision.models without weights; or package.module:Name of a "
        "Module class with its arguments, or of a function without arguments that returns a model",
    )
    parser.add_argument("--batch", type=positive, default=8, help="how many images (8)")
    add_input_arguments(parser)
    parser.add_argument(
        "--keep", choices=("less", "all"), help="as in convert(model, keep=...) (less)"
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu, or cuda, where the allocator measures"
    )
    parser.add_argument("--memory", metavar="SIZE", help="say the largest batch for it: 24GiB")
    parser.add_argument("--all", action="store_true", help="print every tensor")
    parser.add_argument("--json", metavar="FILE", help="write it as JSON; - for the output")
    parser.add_argument("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf")
    parser.set_defaults(run=run)


def add_input_arguments(parser):
    """What a model is called with, and how."""
    parser.add_argument("--size", type=positive, default=224, help="of a model's images (224)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE",
        help="in place of a model's images, an input, in order: 16,3,32,32 is a random tensor of that "
        "shape; 4:10 holds four integers below 10; =0.5 is the number itself; once for each input",
    )
    parser.add_argument("--autocast", choices=("bf16", "fp16"), help="run forward under autocast")
    parser.add_argument("--eval", action="store_true", help="in evaluation mode, not in training")


def run(arguments):
    """The exit status: 0."""
    if arguments.memory:
        try:
            bytes_of(arguments.memory)
        except ValueError as error:
            raise Mistake(f"--memory: {error}") from error
    model, name = model_of(arguments.target)
    try:
        device = torch.device(arguments.device)
        model = model.to(device).train(not arguments.eval)
        inputs = [t.to(device) if isinstance(t, torch.Tensor) else t for t in given(arguments)]
    except (RuntimeError, AssertionError) as error:
        raise Mistake(f"--device {arguments.device}: {first_line(error)}") from error
    if arguments.keep:
        convert(model, keep=arguments.keep)
    autocast = DTYPES.get(arguments.autocast)
    try:
        made = ledger(model, *inputs, autocast=autocast, memory=arguments.memory, name=name)
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise Mistake(f"{arguments.target} cannot be measured: {first_line(error)}") from error
    print(
        made.table() if arguments.all else made, file=sys.stderr if arguments.json == "-" else None
    )
    write(arguments.json, made.to_json())
    if arguments.plot:
        draw(made, arguments.plot)
    return 0


def model_of(text):
    """(the model, what it is called)."""
    package, _, name = text.partition(":")
    if package == "torchvision":
        return of_torchvision(name), name
    target, called = resolve(text)
    if isinstance(target, type) and not called:
        raise Mistake(f"{text} is a class: give its arguments, {text}(...)")
    if callable(target) and not isinstance(target, torch.nn.Module):
        target = built(target, ())
    if not isinstance(target, torch.nn.Module):
        raise Mistake(f"{text} is {type(target).__name__}, not a model")
    return target, name


def of_torchvision(name):
    try:
        from torchvision import models
    except ImportError as error:
        raise Mistake(
            f"torchvision cannot be imported: {error}; pip install torchvision"
        ) from error
    if name not in models.list_models():
        import difflib

        close = difflib.get_close_matches(name, models.list_models(), 3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise Mistake(f"torchvision has no model {name!r}{hint}")
    return models.get_model(name, weights=None)


def given(arguments):
    if not arguments.input:
        shape = (arguments.batch, 3, arguments.size, arguments.size)
        return [torch.randn(shape, generator=torch.Generator().manual_seed(0))]
    inputs = [random_input(text, i) for i, text in enumerate(arguments.input)]
    return [
        t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in inputs
    ]


def draw(made, path):
    try:
        made.plot(path)
    except ImportError as error:
        raise Mistake(f"--plot needs matplotlib: {error}; pip install matplotlib") from error
    except (OSError, ValueError) as error:
        raise Mistake(f"{path} cannot be written: {first_line(error)}") from error


def first_line(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__


def positive(text):
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return number
