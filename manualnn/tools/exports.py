"""A trained model for use elsewhere: as torch.nn has it, without a line of ours.

    manualnn.export(model, "model.safetensors")        # the weights
    manualnn.export(model, "model.pt2", images)        # a program of torch.export
    manualnn.export(model, "model.onnx", images)       # a graph for other runtimes

`train.py export` does it with a checkpoint: pixels in 0 to 1 in, probabilities out.
"""

import inspect
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from manualnn._torch import tree_map
from manualnn.conversion import revert
from manualnn.tools.copies import copied
from manualnn.tools.files import replacing_all

BATCH = "batch"
# ONNX is a protobuf message, which cannot exceed 2 GiB; larger weights lie in a file beside it.
LARGEST_ONNX = 2**31 - 2**24


class ExportError(RuntimeError):
    """The model cannot be written in this format; the message says what is in the way."""

    __module__ = "manualnn"  # where users find it


def export(
    model: torch.nn.Module,
    path: str | os.PathLike,
    example_inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = BATCH,
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Writes the model as torch.nn has it, so that what reads it needs nothing of manualnn.

    The ending of `path` says how:

    - `.safetensors`: the state_dict, of the keys that torch.nn's model has. A tensor of several names is
      there once, under the first: `safetensors.torch.load_model(model, path)` knows that.
    - `.pt2`: a program of `torch.export`: `torch.export.load(path).module()(images)`.
    - `.onnx`: a graph for onnxruntime and other runtimes.

    What is written is a copy: moved to the CPU, reverted (`manualnn.revert`), in evaluation mode. The model
    stays as it is: its mode, its layers' classes, its hooks, its parameters and their device. An activation
    of one's own, which torch.nn has no twin of, is written as the operations of its formula. The file
    appears when it is whole, and replaces one of that name.

    Args:
        model: any module.
        path: the file to write.
        example_inputs: for a program or a graph what the model is called with: a tensor or a tuple. Only
            shapes and dtypes count. One example is repeated, since a batch of one would pass for a constant.
        kwargs: what the model is called with by name.
        dynamic_shapes: "batch": the first size of every tensor may vary, the others may not; None: none
            may; anything else goes to `torch.export.export` as it is.
        metadata: text by name, kept in the file: in a program as its extra file `metadata.json`, in ONNX as
            `metadata_props`, in safetensors as `__metadata__`.
        **options: only for ONNX: what `torch.onnx.export` takes, such as `opset_version`, `input_names`.

    Returns:
        `path`, as a Path.

    Raises:
        TypeError: `model` is not a torch.nn.Module; options or inputs that the format does not take.
        ValueError: another ending; a format that calls the model, but no `example_inputs`.
        ImportError: the package that writes the format is not installed.
        ExportError: the model cannot be copied, traced or translated; a RuntimeError.
        OSError: the file cannot be written.
    """
    path = Path(path)
    writers = {".safetensors": _write_weights, ".pt2": _write_program, ".onnx": _write_graph}
    if not isinstance(model, torch.nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"export() takes a torch.nn.Module, not {got}")
    if path.suffix not in writers:
        raise ValueError(f"{path} must end in {', '.join(writers)}: the ending names the format")
    if options and path.suffix != ".onnx":
        raise TypeError(f"{', '.join(options)}: only ONNX takes options, {path.suffix} does not")
    metadata = _checked(metadata)
    plain = _plain_copy(model)
    if path.suffix == ".safetensors":
        if example_inputs is not None or kwargs is not None:
            raise TypeError("a file of weights is written without calling the model: no inputs")
        contents = plain
    else:
        if example_inputs is None and not kwargs:
            raise ValueError(f"{path.suffix} is traced by calling the model: give example_inputs")
        contents, dynamic_shapes = _traced(plain, example_inputs, kwargs, dynamic_shapes)
        if path.suffix == ".onnx":
            options = {"dynamic_shapes": dynamic_shapes, **options}
    with replacing_all(path) as new:
        writers[path.suffix](contents, new, metadata, **options)
    return path


def _checked(metadata: Mapping[str, str] | None) -> dict[str, str]:
    for name, value in (metadata or {}).items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"metadata is text by name, not {name!r}: {value!r}")
    return dict(metadata or {})


def _plain_copy(model: torch.nn.Module) -> torch.nn.Module:
    """The model as torch.nn has it, on the CPU, in evaluation mode; nothing is shared with `model`."""
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # of torch.compile's wrapper
    try:
        plain = copied(model)
    except Exception as error:  # a module's attribute may be anything
        raise ExportError(
            f"{type(model).__name__} cannot be copied, which export does to leave it as it is: "
            f"{_first_line(error)}"
        ) from error
    return revert(plain).cpu().eval()


def _traced(plain, example_inputs, kwargs, dynamic_shapes):
    """(the program of a call with these inputs, its dynamic shapes with names in the place of symbols)."""
    args = () if example_inputs is None else example_inputs
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    args, kwargs = tree_map(_on_cpu, (args, dict(kwargs or {})))
    named = dynamic_shapes
    if isinstance(dynamic_shapes, str):
        if dynamic_shapes != BATCH:
            raise ValueError(
                f'dynamic_shapes must be "batch", None or a structure of shapes, not {dynamic_shapes!r}'
            )
        args, kwargs = tree_map(_several, (args, kwargs))
        dynamic_shapes = _first_sizes(plain, args, kwargs, torch.export.Dim(BATCH))
        named = _first_sizes(plain, args, kwargs, BATCH)
    with torch.no_grad():
        try:
            with _quiet_tracing():
                program = torch.export.export(plain, args, kwargs, dynamic_shapes=dynamic_shapes)
        except Exception as error:  # what tracing raises depends on what it stumbles over
            plain(*args, **kwargs)  # inputs that do not fit: torch's own exception
            raise ExportError(
                f"{type(plain).__name__} cannot be traced: {_reason(error)}{_not_torchs(plain)}"
            ) from error
    # A file for others holds neither the paths of this machine nor the pictures it was traced with.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program, named


def _on_cpu(value):
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def _several(value):
    """A batch of one as a batch of two: tracing takes a size of 1 for a constant."""
    one = isinstance(value, torch.Tensor) and value.dim() and len(value) == 1
    return torch.cat([value, value]) if one else value


def _first_sizes(module, args, kwargs, dim):
    """The structure of the inputs, of each tensor {0: dim}: in order, or by name where names are given."""

    def of(value):
        return {0: dim} if isinstance(value, torch.Tensor) and value.dim() else None

    args, kwargs = tree_map(of, (args, kwargs))
    return (
        dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) if kwargs else args
    )


@contextmanager
def _quiet_tracing():
    """Without the tracebacks that the tracer logs on its way to an exception, which says it all."""
    names = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _not_torchs(plain: torch.nn.Module) -> str:
    """A hint: the layers that revert knows no torch.nn twin of."""
    strange = [
        f"{name} ({type(module).__name__})"
        for name, module in plain.named_modules()
        if name
        and next(module.children(), None) is None
        and not type(module).__module__.startswith(("torch.", "torchvision."))
    ]
    return f"; layers that are not torch.nn's: {', '.join(strange[:3])}" if strange else ""


def _write_weights(plain: torch.nn.Module, path: Path, metadata: dict[str, str]) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_model
    except ImportError as error:
        raise _missing("safetensors", ".safetensors") from error
    try:
        save_model(plain, str(path), {"format": "pt", **metadata})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise ExportError(f"the weights cannot be written: {_first_line(error)}") from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        # Such as a state_dict that holds more than tensors, or sparse ones.
        raise ExportError(f"the state_dict cannot be written: {_first_line(error)}") from error


def _write_program(program, path: Path, metadata: dict[str, str]) -> None:
    extra = {"metadata.json": json.dumps(metadata, indent=2)}
    # Not to the file: where the disk is full, PyTorch's own writer ends the process (SIGABRT).
    written = io.BytesIO()
    torch.export.save(program, written, extra_files=extra)
    path.write_bytes(written.getbuffer())


def _write_graph(program, path: Path, metadata: dict[str, str], **options) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise _missing("onnxscript", ".onnx") from error
    try:
        with warnings.catch_warnings():
            # A size keeps the tracer's name where an input is no tensor, or two are the same size.
            warnings.filterwarnings("ignore", message="# (ONNX model has different|The axis name)")
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **options)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"ONNX cannot express the model: {_innermost(error)}") from error
    made.model.metadata_props.update(metadata)
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    made.save(str(path), external_data=size > LARGEST_ONNX)


def _missing(package: str, ending: str) -> ImportError:
    return ImportError(f"{ending} is written by {package}: pip install {package}")


def _reason(error: BaseException) -> str:
    """What a tracer's message says first, and of a size that may not vary which one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or not lines[0].startswith("Constraints violated"):
        return _first_line(error)
    which = [line.removeprefix("- ") for line in lines[1:] if line.startswith("- ")][:1]
    return " ".join(["a size may not vary (dynamic_shapes=None keeps all):", *which])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)
