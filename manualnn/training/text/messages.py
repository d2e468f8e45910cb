"""What the parser says of a mistake, in one short line for the user."""

import difflib
import inspect
import re
import shlex
from importlib import import_module

from manualnn.training.text.names import brief, shown

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list",
    "list[int]": "a list of whole numbers, such as [64, 32]",
    "list[float]": "a list of numbers, such as [0.9, 0.999]",
}


def one_line(error: object) -> str:
    """An error, or what is said of one, as one line."""
    return brief(shown(_meant(_unbroken(error))))


def _meant(text: str) -> str:
    # Of several types that a value could have, the first is the one that was meant.
    refused = re.match(
        r"Does not validate against any of .*? Errors: - (.*?) - (?:Not a valid|Expected an?) ",
        text,
    )
    return refused[1] if refused else text


def _unbroken(error: object) -> str:
    return " ".join(str(error).split())


def quote(path: object) -> str:
    """A path as it must be written in a command for the shell."""
    return shlex.quote(str(path))


def explain(error: BaseException, options: list[str]) -> str:
    """The parser's message, shorter; as it is where it has another form than the known ones.

    Args:
        error: What the parser raised.
        options: Every option there is, such as "--data.batch_size".
    """
    text = shown(_unbroken(error))
    if unknown := re.match(r"(?:unrecognized arguments|ambiguous option): (-[^ =]*)", text):
        near = _nearest_option(unknown[1], options)
        meant = f"; did you mean {near}?" if near else "; --help lists all"
        return f"no option is called {unknown[1]}{meant}"
    if section := re.match(r"Subcommand '(\w+)' does not accept option '(search|sweep)\.", text):
        return f"the configuration has a section {section[2]}; it is for train.py sweep --config"
    if unread := re.match("Problems parsing config: (.*)", text):
        return f"a --config cannot be used: {unread[1]}"
    if text.startswith("Unexpected config:"):
        return "a --config holds no options"
    parsed = re.search(r'Parser key "([^"]+)": (.*)', text)
    if not parsed:
        return text
    option, reason = f"--{parsed[1].replace('.init_args', '')}", parsed[2]
    if no_file := re.match(r"(File does not exist|Path is not a file): '(.*)'$", reason):
        wrong = "there is no such file" if no_file[1].startswith("File") else "it is no file"
        return f"{option} {no_file[2]}: {wrong}"
    if problem := re.search(r"Problem with given class_path '([^']+)': (.*)", reason):
        return _explain_class(option, problem[1], problem[2])
    if missing := re.search(r"Expected a dot import path string: (\S+)", reason):
        return f"{option} {missing[1]}: no class is called so{_similar(option, missing[1])}"
    return _explain_value(option, reason) or text


def _nearest_option(wrong: str, options: list[str]) -> str:
    # The user often knows the last part alone: --batch_size for --data.batch_size.
    inner = [option for option in options if option.endswith(f".{wrong.lstrip('-')}")]
    near = inner or difflib.get_close_matches(wrong, options, n=1)
    return near[0] if near else ""


def _explain_class(option: str, path: str, reason: str) -> str:
    name = path.rpartition(".")[2]
    if unknown := re.match(r"Option '([^']+)' is not accepted", reason):
        known = _arguments(path)
        there_is = f"; it has {', '.join(known)}" if known else ""
        return f"{name} has no option {option}.{unknown[1]}{there_is}"
    if missing := re.match(r"the following arguments are required: ([\w, ]+?)(?= - |$)", reason):
        return f"{name} needs " + ", ".join(f"{option}.{a}" for a in missing[1].split(", "))
    if inner := re.match(r'Parser key "([^"]+)": (.*)', reason):
        if line := _explain_value(f"{option}.{inner[1]}", inner[2]):
            return line
    # What follows speaks of the other types that the option could have had.
    return f"{option} {path}: {reason.split(' - Expected a ')[0]}"


def _arguments(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    try:
        names = inspect.signature(getattr(import_module(module), name)).parameters
        return [name for name in names if name not in ("params", "optimizer")]
    except (ImportError, AttributeError, TypeError, ValueError):
        return []


def _similar(option: str, wrong: str) -> str:
    module = {"--optimizer": "torch.optim", "--lr_scheduler": "torch.optim.lr_scheduler"}.get(
        option
    )
    if module is None:
        return ""
    kinds = vars(import_module(module)).items()
    known = {name.lower(): name for name, kind in kinds if isinstance(kind, type)}
    near = difflib.get_close_matches(wrong.lower(), known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def _explain_value(option: str, reason: str) -> str:
    """ "--option value: needed is ...", or "" where the message names neither type nor value."""
    value = re.search(r"(?:Given value|Got value): ?(\S*)", reason)
    several = re.search(r"Subtypes: \[(.*?)\] Errors:", reason)
    one = re.search(r"Expected an? (.*?)\. Got value", reason)
    if not value or not (several or one):
        return ""
    kinds = _split(several[1]) if several else [one[1]]
    words = [
        word for word in map(_word, kinds) if word != "Tensor"
    ]  # none can be written in a command
    if value[1].lstrip("+-").lower() in ("nan", "inf", "infinity"):
        words = [word.replace("a number", "a finite number") for word in words]
    shown_value = value[1] or "(nothing)"
    return f"{option} {shown_value}: needed is {' or '.join(words)}"


def _split(kinds: str) -> list[str]:
    """At the commas that are inside no bracket."""
    return re.split(r", (?![^\[]*\])", kinds)


def _word(kind: str) -> str:
    if weights := re.fullmatch(r"<enum '(\w+)'>", kind):
        known = getattr(import_module("torchvision.models"), weights[1], None)
        return f"one of {', '.join(known.__members__)}" if known else kind
    kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
    if literal := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind):
        return "one of " + literal[1].replace("'", "")
    return _WORDS.get(kind, kind)
