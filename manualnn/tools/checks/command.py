"""``python -m manualnn check``: the check on the command line."""

import ast
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from manualnn.tools.checks import RUNS, check
from manualnn.tools.checks.lines import LINES
from manualnn.tools.checks.own import catalogue
from manualnn.tools.checks.report import FAILED, NOTE, PASSED, UNSUPPORTED

EPILOG = """
examples:
  python -m manualnn check                                   everything of manualnn's own
  python -m manualnn check mypackage.ops:MyFunction --input 4,3 --input 5,3 --input 5
  python -m manualnn check 'torch.nn:Linear(3, 5)' --input 4,3
  python -m manualnn check mypackage:build_model --input 2,3,32,32 --json report.json

exit status: 0 all passed, 1 something did not, 2 the target cannot be checked
"""

# What comes of reading a text as a plain value, or as arguments.
UNREADABLE = (SyntaxError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)


class Mistake(Exception):
    """Something a person can put right, in one line."""


def add_arguments(parser):
    parser.add_argument(
        "target",
        nargs="?",
        help="package.module:Name of an autograd.Function, an Activation, a function of tensors, a "
        "Module class with its arguments, or a function without arguments that returns a model; "
        "left out: everything of manualnn's own",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE",
        help="an input, in order: 4,3 is a random tensor (4, 3); 4:10 holds four integers below 10; "
        "=0.5 is the number itself; once for each input",
    )
    parser.add_argument("--reference", help="package.module:name of a function that does the same")
    parser.add_argument("--kinks", help="numbers at which the derivative jumps: 0,6")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="LINE", help="leave a line out"
    )
    parser.add_argument("--only", action="append", metavar="LINE", help="make this line alone")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (0)")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - for the output")
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="manualnn's own as a Markdown table, families by lines",
    )
    parser.set_defaults(run=run)


def run(arguments):
    """The exit status: 0, or 1 where something did not pass."""
    if arguments.target is None:
        return run_own(arguments)
    if arguments.matrix:
        raise Mistake("--matrix is of manualnn's own: leave the target out")
    target, called = resolve(arguments.target)
    if callable(target) and not isinstance(target, (type, torch.nn.Module)) and not called:
        target = built(target, arguments.input)
    inputs = [random_input(text, arguments.seed + i) for i, text in enumerate(arguments.input)]
    reference = resolve(arguments.reference)[0] if arguments.reference else None
    kinks = numbers(arguments.kinks) if arguments.kinks else None
    try:
        report = check(
            target,
            *inputs,
            reference=reference,
            kinks=kinks,
            skip=arguments.skip,
            only=arguments.only,
            seed=arguments.seed,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise Mistake(f"{arguments.target} cannot be checked: {error}") from error
    if [line.name for line in report.lines][-1:] == [RUNS]:
        raise Mistake(f"{arguments.target} cannot be checked: {report.lines[-1].detail}")
    report.print(sys.stderr if arguments.json == "-" else sys.stdout)
    write(arguments.json, report.to_json())
    return 0 if report else 1


def run_own(arguments):
    reports = {}
    for family, entries in catalogue().items():
        for name, target, inputs, options in entries:
            options = options | {"skip": (*options.get("skip", ()), *arguments.skip)}
            report = check(target, *inputs, only=arguments.only, seed=arguments.seed, **options)
            report.target = name
            reports.setdefault(family, []).append(report)
            if not arguments.matrix:
                print(report if not report else f"{name}: right", flush=True)
    everything = [r for of in reports.values() for r in of]
    bad = [r for r in everything if r.failures]
    if arguments.matrix:
        print(matrix(reports))
    else:
        print(f"\n{len(everything)} checked, {len(bad)} not right")
    content = [json.loads(report.to_json()) for report in everything]
    write(arguments.json, json.dumps(content, ensure_ascii=False, indent=1))
    return 1 if bad else 0


def matrix(reports):
    """Markdown: a row a line, a column a family; how many of the family's ops pass it."""
    families = list(reports)
    rows = [
        "| | " + " | ".join(families) + " |",
        "|---|" + ":-:|" * len(families),
    ]
    for name in [*(name for name, _ in LINES), "layer by layer"]:
        cells = []
        for family in families:
            lines = [
                line for report in reports[family] for line in report.lines if line.name == name
            ]
            lines = [line for line in lines if line.status != NOTE]
            passed = sum(line.status == PASSED for line in lines)
            wrong = [line.status for line in lines if line.status in (FAILED, UNSUPPORTED)]
            cells.append("–" if not lines else f"{passed}/{len(lines)}" if wrong else f"{passed}")
        if any(cell != "–" for cell in cells):
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def write(path, text):
    if path == "-":
        print(text)
    elif path:
        try:
            Path(path).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise Mistake(f"{path} cannot be written: {error.strerror}") from error


def resolve(text):
    """(the object that package.module:Name names, whether arguments were given and it was called)."""
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise Mistake(f"{text!r} is no target; it reads package.module:Name")
    sys.path.insert(0, "")  # a file in the current folder, as with python -m
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise Mistake(f"{module} cannot be imported: {error}") from error
    name, bracket, arguments = name.partition("(")
    for part in name.split("."):
        if not hasattr(found, part):
            raise Mistake(f"{module} has no {name}")
        found = getattr(found, part)
    if not bracket:
        return found, False
    try:
        call = ast.parse("f(" + arguments, mode="eval").body
        positional = [ast.literal_eval(a) for a in call.args]
        named = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    except UNREADABLE as error:
        raise Mistake(f"({arguments} is no list of plain values") from error
    try:
        return found(*positional, **named), True
    except Exception as error:
        raise Mistake(f"{text} cannot be made: {type(error).__name__}: {error}") from error


def built(function, inputs):
    """A function without arguments is a factory: the model it returns. Any other is checked itself."""
    import inspect

    try:
        needed = [
            p for p in inspect.signature(function).parameters.values() if p.default is p.empty
        ]
    except (TypeError, ValueError):
        return function
    if needed and any(p.kind is not p.VAR_KEYWORD for p in needed):
        return function
    made = function()
    if not isinstance(made, torch.nn.Module):
        raise Mistake(f"{function.__name__}() returns {type(made).__name__}, not a torch.nn.Module")
    return made


def random_input(text, seed):
    generator = torch.Generator().manual_seed(seed)
    try:
        if text.startswith("="):
            return ast.literal_eval(text[1:])
        shape, colon, below = text.partition(":")
        sizes = tuple(int(n) for n in shape.replace("x", ",").split(",") if n.strip())
        if colon:
            return torch.randint(0, int(below), sizes, generator=generator)
        return torch.randn(sizes, generator=generator, dtype=torch.float64)
    except UNREADABLE as error:
        raise Mistake(f"--input {text}: {error}; it reads 4,3 or 4:10 or =0.5") from error


def numbers(text):
    try:
        return tuple(float(n) for n in text.split(","))
    except ValueError as error:
        raise Mistake(f"--kinks {text}: {error}") from error
