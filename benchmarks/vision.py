"""torchvision's models in training, and the contestants that train them."""

import argparse
import contextlib
import gc
import os

import torch
import torchvision
from timing import machine
from torch.utils.checkpoint import checkpoint
from torchvision import models

import manualnn

NAMES = (
    *("resnet50", "vgg16_bn", "densenet121", "mobilenet_v3_large"),
    *("efficientnet_b0", "vit_b_16", "swin_t", "convnext_tiny"),
)
# At 64 pixels what Python does counts: `--models small --size 64 --batch 8`.
SMALL = (
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1"),
    *("mnasnet0_5", "regnet_y_400mf", "efficientnet_b0", "densenet121", "googlenet"),
)
# What a person would put a checkpoint around.
BLOCKS = {
    "Bottleneck",
    "BasicBlock",
    "_DenseLayer",
    "InvertedResidual",
    "MBConv",
    "EncoderBlock",
    "SwinTransformerBlock",
    "CNBlock",
}
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
OURS, THEIRS, CHECKPOINT, COMPILE = "manualnn", "torch.nn", "checkpoint", "torch.compile"


def model(name, device="cpu", dtype=torch.float32):
    """The model in training mode, the same weights each time."""
    torch.manual_seed(0)
    more = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    made = models.get_model(name, weights=None, **more)
    for p in made.parameters():
        if p.dim() > 1 and not p.any():  # the head of vit_b_16: all other gradients would be 0
            torch.nn.init.normal_(p, std=0.02)
    return made.to(device, dtype).train()


def contestant(kind, model):
    """The model as the contestant trains it; ``model`` itself is changed."""
    if kind == OURS:
        return manualnn.convert(model)
    if kind == COMPILE:
        return torch.compile(model)
    if kind == CHECKPOINT:
        return checkpointed(model)
    return model


def checkpointed(model):
    """Each block's inner results are dropped and computed again in backward, with its products."""
    blocks = [m for m in model.modules() if type(m).__name__ in BLOCKS]
    if not blocks and isinstance(getattr(model, "features", None), torch.nn.Sequential):
        model.features = pieces(model.features)  # vgg: from one pooling to the next
        blocks = list(model.features)
    for block in blocks:
        block.forward = again(block.forward)
    return model


def again(forward):
    def run(*inputs):
        # DenseNet goes on to append to the list of features that its layers are given.
        inputs = [list(x) if isinstance(x, list) else x for x in inputs]
        return checkpoint(forward, *inputs, use_reentrant=False)

    return run


def pieces(layers):
    found = [[]]
    for layer in layers:
        found[-1].append(layer)
        if isinstance(layer, torch.nn.MaxPool2d):
            found.append([])
    return torch.nn.Sequential(*(torch.nn.Sequential(*piece) for piece in found if piece))


class Task:
    """A contestant's training step: forward, loss, backward."""

    def __init__(self, name, kind, precision, batch, size=224, device="cpu", dtype=torch.float32):
        self.device, self.autocast = torch.device(device), DTYPES[precision]
        self.model = contestant(kind, model(name, device, dtype))
        self.parameters = list(self.model.parameters())
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, size, size, generator=generator)
        labels = torch.randint(0, 1000, (batch,), generator=generator)
        self.x, self.y = images.to(device, dtype), labels.to(device)

    def forward(self):
        region = contextlib.nullcontext()
        if self.autocast is not None:
            region = torch.autocast(self.device.type, self.autocast)
        with region:
            return torch.nn.functional.cross_entropy(self.model(self.x), self.y)

    def __call__(self):
        for p in self.parameters:
            p.grad = None
        torch.manual_seed(1)  # the same masks for all contestants
        self.forward().backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def fits(name, kind, precision, size=224):
    """Whether a batch fits on the GPU, as a function of the batch."""

    def fit(batch):
        try:
            Task(name, kind, precision, batch, size, "cuda")()
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return True

    return fit


def largest_batch(fit, start=16, exact=16):
    """The largest batch that fits, to one part in ``exact``, by doubling and then by halves."""
    if not fit(start):
        return largest_batch(fit, start // 2, exact) if start > 1 else 0
    low = start
    while fit(2 * low):
        low *= 2
    high = 2 * low
    while high - low > max(1, low // exact):
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return low


def where(device):
    """The machine, torchvision's version, and the GPU."""
    found = machine() | {"torchvision": torchvision.__version__, "manualnn": manualnn.__version__}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def environment(more):
    """This process's, and more."""
    return dict(os.environ) | more


def arguments(parser):
    parser.add_argument(
        "--models",
        default=",".join(NAMES),
        help="names, with commas between them; small: ten for small images",
    )
    parser.add_argument("--precision", default="fp32,bf16", help="fp32, bf16 (autocast), or both")
    parser.add_argument("--size", type=int, default=224, help="of the images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile, too: minutes a model"
    )
    parser.add_argument("--save", action="store_true", help="into benchmarks/results")


def parsed(parser):
    found = parser.parse_args()
    found.models = list(SMALL) if found.models == "small" else found.models.split(",")
    found.precision = found.precision.split(",")
    for name in found.models:
        if name not in models.list_models():
            parser.error(f"torchvision has no model {name!r}")
    for name in found.precision:
        if name not in DTYPES:
            parser.error(f"--precision is {', '.join(DTYPES)}, not {name!r}")
    return found


def contestants(found):
    return [THEIRS, OURS, CHECKPOINT, *([COMPILE] if found.compile else [])]


def parser_of(doc):
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
