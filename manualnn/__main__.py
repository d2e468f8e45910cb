"""``python -m manualnn``: the library's tools on the command line."""

import argparse
import os
import sys

from manualnn.tools import kernels
from manualnn.tools.checks import command as check
from manualnn.tools.explanations import command as explain
from manualnn.tools.ledgers import command as ledger
from manualnn.tools.ledgers.command import first_line

TOOLS = {
    "check": (
        check,
        "is this backward right?",
        "Checks a hand-written backward in every regime and names what is wrong.",
    ),
    "ledger": (
        ledger,
        "what is saved for backward?",
        "Says what each layer of a model saves for backward, beside torch.nn.",
    ),
    "explain": (
        explain,
        "what does a network compute, forward and backward?",
        "Explains a network layer by layer: equations, shapes, what is saved, FLOPs.",
    ),
    "kernel": (
        kernels,
        "what does a formula become?",
        "Prints an activation's formulas, what they compute, and their C and Triton.",
    ),
}


def main(arguments=None):
    """Runs a tool; the exit status is 2 for a mistake of the person's, 130 for Ctrl-C,
    141 where nobody reads on."""
    parser = argparse.ArgumentParser(prog="python -m manualnn", description=__doc__.split(": ")[1])
    tools = parser.add_subparsers(required=True, metavar="tool")
    for name, (command, does, description) in TOOLS.items():
        tool = tools.add_parser(
            name,
            help=does,
            description=description,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(tool)
    parser.set_defaults(dataset_facts=dataset_facts)  # the tools know nothing of the trainer
    try:
        parsed = parser.parse_args(arguments)
        status = parsed.run(parsed)
        sys.stdout.flush()
        return status
    except check.Mistake as mistake:
        print(f"python -m manualnn: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads it has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def dataset_facts(dataset, root, split):
    """(image shape, number of classes) of a dataset; none of its images is read."""
    try:
        from manualnn.training.data import DataError, ImageData
    except ImportError as error:
        raise check.Mistake(
            f"--dataset needs the training part: {error}; pip install 'manualnn[train]', or give "
            "--image_shape and --num_classes"
        ) from error
    if dataset == "ImageFolder" and root is None:
        raise check.Mistake("--dataset ImageFolder needs --root, the folder of the pictures")
    known = {} if root is None else {"root": root}
    try:
        data = ImageData(dataset, split=split, **known)
        return data.image_shape, data.num_classes
    except DataError as error:
        raise check.Mistake(first_line(error)) from error


if __name__ == "__main__":
    sys.exit(main())
