"""`train.py export`: a trained classifier as a file for other programs."""

import json
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

import manualnn
from manualnn.tools.copies import copied
from manualnn.tools.exports import ExportError
from manualnn.tools.files import replacing_all
from manualnn.training.deploy.output import check_output
from manualnn.training.deploy.parser import Parser
from manualnn.training.deploy.trained import Trained
from manualnn.training.errors import TrainingError
from manualnn.training.model.criterion import QuadraticLoss
from manualnn.training.text.names import shown

FORMATS = ("onnx", "pt2", "safetensors")
# Largest difference between two probabilities: runtimes add in another order, no more than that.
CLOSE, CLOSE_HALF = 1e-4, 2e-2
DESCRIPTION = "Writes a trained classifier as a file that needs nothing of manualnn."
EPILOG = """
onnx and pt2 hold the whole way from pictures to probabilities: they take a batch of any size,
float32 (batch, channels, height, width) with pixels in 0 to 1, and normalise it as the training did.
safetensors holds the weights, under the names that torch.nn's network gives them; what normalises the
pixels is in its metadata. The metadata of each names the classes.

The file is loaded again and compared with the checkpoint before it takes its place.

examples:
  python train.py export --ckpt_path best --format onnx
  python train.py export --ckpt_path best.ckpt --output digits.pt2

exit status: 0, or 2 where the checkpoint cannot be read or exported
"""


class Uncompared(Exception):
    """What was written cannot be run here; the message says why."""


class FromPictures(torch.nn.Module):
    """images (B, C, H, W) float32, pixels in 0 ... 1 -> probabilities (B, classes) float32."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.network, self.dtype = trained.model.network, trained.dtype
        self.register_buffer("factor", trained.reading.factor)
        self.register_buffer("offset", trained.reading.offset)
        quadratic = isinstance(trained.model.criterion, QuadraticLoss)
        self.last = torch.nn.Sigmoid() if quadratic else torch.nn.Softmax(1)

    def forward(self, images: Tensor) -> Tensor:
        # level / 255 * 255 is the level again, to the bit, for all 256: the numbers of the training.
        scaled = images * 255 * self.factor + self.offset
        if self.dtype is torch.float32:
            return self.last(self.network(scaled))
        return self.last(self.network(scaled.to(self.dtype)).float())


def parser() -> Parser:
    made = Parser(prog="train.py export", description=DESCRIPTION, epilog=EPILOG)
    made.add_argument(
        "--format", choices=FORMATS, help="needed unless the ending of --output says it"
    )
    made.add_argument(
        "--output", metavar="FILE", help="by default beside the checkpoint, of its name"
    )
    return made


def run(args: list[str]) -> int:
    """The exit status: 0."""
    options = parser()
    given = options.parse_args(args)
    form = _format_of(given)
    trained = options.trained(given)
    path = Path(given.output) if given.output else trained.checkpoint.with_suffix(f".{form}")
    check_output(path, form, [trained.checkpoint])
    try:
        with replacing_all(path) as new:
            compared = _write(trained, form, new)
    except (ExportError, ImportError) as error:
        raise TrainingError(error) from error
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from error
    print(f"{shown(path)}: {metadata(trained, form)['input']}")
    print(compared)
    return 0


def _format_of(given: Namespace) -> str:
    ending = Path(given.output or "").suffix.lstrip(".")
    if given.format is None and ending not in FORMATS:
        raise TrainingError(f"--format is needed: {', '.join(FORMATS)}")
    if given.output and given.format not in (None, ending):
        raise TrainingError(f"--output {given.output} must end in .{given.format}")
    return given.format or ending


def metadata(trained: Trained, form: str) -> dict[str, str]:
    """What a reader of the file must know, as text."""
    reading = trained.reading
    channels, height, width = reading.image_shape
    colours = {1: "grey", 3: "red, green, blue"}.get(channels, f"{channels} channels")
    mean, std = reading.mean_and_std
    shape = f"(batch, {channels}, {height}, {width}), {colours}"
    made = {
        "input": f"images: float32 {shape}, pixels in 0 to 1; mean and std are applied inside",
        "output": f"probabilities: float32 (batch, {len(reading.class_names)}), in the order of classes",
        "classes": json.dumps(reading.class_names),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "dataset": reading.dataset,
        "steps": str(trained.step),
        "producer": f"manualnn {manualnn.__version__}, torch {torch.__version__}",
    }
    if form == "safetensors":
        made["input"] = f"weights; images: {shape}, pixels in 0 to 1, minus mean, over std"
        made["output"] = f"scores: (batch, {len(reading.class_names)}), in the order of classes"
        made["network"] = repr(manualnn.revert(copied(trained.model.network)))
    return made


def _write(trained: Trained, form: str, path: Path) -> str:
    """Writes the file, and says how near what it holds is to the checkpoint."""
    said = metadata(trained, form)
    if form == "safetensors":
        manualnn.export(trained.model.network, path, metadata=said)
        return _compare_weights(trained, path)
    draw = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (3, *trained.reading.image_shape), generator=draw)
    images = levels / 255
    names = {"input_names": ["images"], "output_names": ["probabilities"]}
    options = names if form == "onnx" else {}
    manualnn.export(FromPictures(trained), path, images[:2], metadata=said, **options)
    try:
        got = (_run_onnx if form == "onnx" else _run_program)(path, images)
    except Uncompared as reason:
        return f"not compared with the checkpoint: {reason}"
    want = trained.probabilities(levels.to(torch.uint8))
    difference = (got - want).abs().max().item()
    wide = trained.dtype in (torch.float32, torch.float64)
    if not difference <= (CLOSE if wide else CLOSE_HALF):
        raise ExportError(f"what was written differs from the checkpoint by {difference:.1e}")
    return f"compared with the checkpoint on 3 pictures: largest difference {difference:.1e}"


def _run_program(path: Path, images: Tensor) -> Tensor:
    return torch.export.load(path).module()(images)


def _run_onnx(path: Path, images: Tensor) -> Tensor:
    try:
        import onnxruntime
    except ImportError as error:
        raise Uncompared("onnxruntime is not installed") from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    except Exception as error:  # onnxruntime's exceptions have no common class
        # Not every kernel is there for the CPU: bfloat16's convolution, for one.
        raise Uncompared(f"onnxruntime cannot run it here: {str(error).splitlines()[0]}") from error


def _compare_weights(trained: Trained, path: Path) -> str:
    from safetensors.torch import load_model

    reloaded = manualnn.revert(copied(trained.model.network))
    with torch.no_grad():
        for tensor in reloaded.state_dict().values():
            tensor.zero_()
    load_model(reloaded, path)
    for name, tensor in trained.model.network.state_dict().items():
        if not torch.equal(tensor.cpu(), reloaded.state_dict()[name].cpu()):
            raise ExportError(f"{name} differs from the checkpoint")
    return "compared with the checkpoint: every tensor is the same"
