"""manualnn.export: what was written, loaded again by its own reader, computes what the model computes."""

import copy
import json
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from snake import Snake

import manualnn
from manualnn import nn
from manualnn.conversion.model import is_memory_saving
from manualnn.tools.exports import ExportError


class Keyed(torch.nn.Module):
    """Takes an input by name, and a switch; returns two outputs by name."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, *, factor, doubled=False):
        return {"y": self.linear(x) * factor * (1 + doubled), "x": x}


class Tied(torch.nn.Module):
    """One matrix under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class ForTwo(torch.nn.Module):
    def forward(self, x):
        return x.view(2, -1)


class Decomposition(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.lu_factor(x)[0]


def densenet():
    return torchvision.models.DenseNet(4, (2, 1), 8, num_classes=5, drop_rate=0.2)


def vit():
    model = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=5, dropout=0.1)
    torch.nn.init.normal_(model.heads.head.weight)  # starts at 0
    return model


def run_program(path, *inputs, **named):
    return torch.export.load(path).module()(*inputs, **named)


def run_onnx(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return [torch.from_numpy(value) for value in values]


def facts(model) -> list:
    """What export must leave as it is, of every module: itself, its class, its mode, its hooks."""
    return [
        (id(m), type(m), m.training, list(m._forward_hooks.values()), list(vars(m)))
        for m in model.modules()
    ]


@pytest.mark.parametrize(("make", "side"), [(vit, 16), (densenet, 32)])
@pytest.mark.one_in(2)
def test_a_converted_model_in_three_formats(tmp_path, make, side):
    torch.manual_seed(0)
    theirs = make()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    model = manualnn.convert(copy.deepcopy(theirs)).train()
    assert is_memory_saving(type(model))
    model.register_forward_hook(lambda module, args, output: None)
    images = torch.randn(5, 3, side, side)
    before, state = facts(model), copy.deepcopy(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    drawn = torch.get_rng_state()
    paths = [tmp_path / f"model.{ending}" for ending in ("pt2", "onnx", "safetensors")]
    assert manualnn.export(model, paths[0], images[:1]) == paths[0]
    manualnn.export(model, str(paths[1]), (images[:2],), input_names=["images"], opset_version=20)
    manualnn.export(model, paths[2])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert facts(model) == before
    assert [id(p) for p in model.parameters()] == parameters
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    with torch.no_grad():
        want = theirs.eval()(images)
    for count in (5, 1):
        assert torch.allclose(run_program(paths[0], images[:count]), want[:count], atol=1e-6)
        (got,) = run_onnx(paths[1], images=images[:count])
        assert torch.allclose(got, want[:count], rtol=1e-4, atol=1e-5)
    assert not any(b"manualnn" in path.read_bytes() for path in paths)
    graph = onnx.load(paths[1])
    assert graph.opset_import[0].version == 20
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    again = make()
    again.load_state_dict(load_file(paths[2]))
    with torch.no_grad():
        assert torch.equal(again.eval()(images), want)


BLOCKED = """
import sys
import threading
sys.modules["manualnn"] = None  # an import of it fails
import torch
for name in ("snake", "mlp"):
    program = torch.export.load(f"{name}.pt2").module()
    torch.save(program(torch.load("x.pt")), f"{name}.pt")
assert not any(name.startswith("manualnn.") for name in sys.modules)
"""


def test_a_program_runs_where_manualnn_is_not_installed(tmp_path):
    torch.manual_seed(0)
    models = {"snake": nn.MLP([6, 5, 3], Snake), "mlp": nn.MLP([6, 5, 3], "gelu", dropout=0.5)}
    x = torch.randn(7, 6)
    torch.save(x, tmp_path / "x.pt")
    for name, model in models.items():
        manualnn.export(model, tmp_path / f"{name}.pt2", x[:1])
    subprocess.run([sys.executable, "-c", BLOCKED], cwd=tmp_path, check=True)
    for name, model in models.items():
        got = torch.load(tmp_path / f"{name}.pt")
        assert torch.allclose(got, model.eval()(x), atol=1e-6), name


def test_an_activation_of_ones_own_is_its_formula_in_onnx_and_large_weights_lie_beside_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sys.modules["manualnn.tools.exports"], "LARGEST_ONNX", 1000)
    model = nn.MLP([6, 500, 3], Snake)
    x = torch.randn(7, 6)
    manualnn.export(model, tmp_path / "snake.onnx", x[:1], input_names=["x"])
    assert {path.name for path in tmp_path.iterdir()} == {"snake.onnx", "snake.onnx.data"}
    (got,) = run_onnx(tmp_path / "snake.onnx", x=x)
    assert torch.allclose(got, model(x), rtol=1e-4, atol=1e-5)
    assert any(node.op_type == "Sin" for node in onnx.load(tmp_path / "snake.onnx").graph.node)


def test_inputs_by_name(tmp_path):
    model, named = Keyed(), {"factor": torch.randn(1, 4), "doubled": True}
    manualnn.export(model, tmp_path / "a.pt2", torch.randn(1, 4), kwargs=named)
    x, factor = torch.randn(3, 4), torch.randn(3, 4)
    got = run_program(tmp_path / "a.pt2", x, factor=factor, doubled=True)
    want = model(x, factor=factor, doubled=True)
    assert got.keys() == want.keys()
    assert all(torch.allclose(got[name], want[name]) for name in want)


def test_sizes_that_do_not_vary_are_refused_or_kept(tmp_path):
    with pytest.raises(ExportError, match=r"a size may not vary \(dynamic_shapes=None keeps all\)"):
        manualnn.export(ForTwo(), tmp_path / "a.pt2", torch.randn(2, 3, 4))
    manualnn.export(ForTwo(), tmp_path / "a.pt2", torch.randn(2, 3, 4), dynamic_shapes=None)
    assert run_program(tmp_path / "a.pt2", torch.ones(2, 3, 4)).shape == (2, 12)
    wide = ({1: torch.export.Dim("width")},)
    manualnn.export(nn.Tanh(), tmp_path / "b.pt2", torch.randn(2, 3), dynamic_shapes=wide)
    assert run_program(tmp_path / "b.pt2", torch.ones(2, 9)).shape == (2, 9)


def test_tied_weights_are_written_once_and_loaded_as_tied(tmp_path):
    model, path = Tied(), tmp_path / "tied.safetensors"
    manualnn.export(model, path, metadata={"made": "here"})
    assert set(load_file(path)) == {"first.weight", "first.bias", "second.bias"}
    with safe_open(path, "pt") as file:
        assert file.metadata()["second.weight"] == "first.weight"
        assert file.metadata()["made"] == "here"
    again = manualnn.revert(Tied())
    load_model(again, path)
    x = torch.randn(3, 4)
    assert torch.equal(again(x), manualnn.revert(model)(x))
    manualnn.export(model, tmp_path / "tied.pt2", x)
    assert torch.equal(run_program(tmp_path / "tied.pt2", x), model(x))


def test_weights_that_are_views_of_one_vector(tmp_path):
    model = nn.MLP([4, 3, 2])
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(vector, model.parameters())
    manualnn.export(model, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_wrappers_are_taken_off(tmp_path):
    model = nn.MLP([4, 3, 2])
    manualnn.export(torch.compile(model), tmp_path / "a.safetensors")
    manualnn.export(torch.nn.DataParallel(model), tmp_path / "b.safetensors")
    for name in "ab":
        assert load_file(tmp_path / f"{name}.safetensors").keys() == model.state_dict().keys()


def test_metadata_is_kept_and_nothing_of_this_machine(tmp_path):
    x = torch.full((2, 4), 1234.5678)
    for ending in ("pt2", "onnx"):
        path = tmp_path / f"a.{ending}"
        manualnn.export(Keyed(), path, x, kwargs={"factor": x}, metadata={"classes": "é, ß"})
        content = path.read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in content
        assert x.numpy().tobytes()[:16] not in content  # the example inputs
    extra = {"metadata.json": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == {"classes": "é, ß"}
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert session.get_modelmeta().custom_metadata_map == {"classes": "é, ß"}


X = torch.randn(2, 6)


@pytest.mark.parametrize(
    ("model", "name", "inputs", "options", "kind", "words"),
    [
        (nn.MLP, "a.pt2", X, {}, TypeError, "not the class MLP"),
        ("text", "a.pt2", X, {}, TypeError, "not str"),
        (nn.ReLU(), "a.pth", X, {}, ValueError, "must end in .safetensors, .pt2, .onnx"),
        (nn.ReLU(), "a.pt2", None, {}, ValueError, "give example_inputs"),
        (nn.ReLU(), "a.safetensors", X, {}, TypeError, "no inputs"),
        (nn.ReLU(), "a.pt2", X, {"opset_version": 20}, TypeError, "opset_version: only ONNX"),
        (nn.ReLU(), "a.onnx", X, {"opset": 20}, TypeError, "opset"),
        (nn.ReLU(), "a.pt2", X, {"metadata": {"a": 1}}, TypeError, "'a': 1"),
        (nn.ReLU(), "a.pt2", X, {"dynamic_shapes": "all"}, ValueError, "'all'"),
        (nn.ReLU(), "none/a.pt2", X, {}, FileNotFoundError, "none"),
        (nn.Linear(7, 2), "a.pt2", X, {}, RuntimeError, "cannot be multiplied"),
        (Branching(), "a.pt2", X, {}, ExportError, "Branching cannot be traced: Could not guard"),
        (Decomposition(), "a.onnx", torch.eye(3)[None], {}, ExportError, "linalg_lu_factor"),
    ],
)  # fmt: skip
def test_refused(tmp_path, model, name, inputs, options, kind, words):
    (tmp_path / "a.pt2").write_text("the file before")
    with pytest.raises(kind) as caught:
        manualnn.export(model, tmp_path / name, inputs, **options)
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    assert (tmp_path / "a.pt2").read_text() == "the file before"


def test_a_model_that_cannot_be_copied(tmp_path):
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(ExportError, match="Linear cannot be copied"):
        manualnn.export(model, tmp_path / "a.safetensors")


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"
    path.write_text("the file before")

    def fill(program, file, **options):
        file.write(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", fill)
    with pytest.raises(OSError, match="No space left"):
        manualnn.export(nn.ReLU(), path, X)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt2"]
    assert path.read_text() == "the file before"


def test_a_file_can_be_read_by_those_who_read_other_files(tmp_path):
    (tmp_path / "other").touch()
    manualnn.export(nn.Linear(2, 2), tmp_path / "a.safetensors")
    modes = [(tmp_path / name).stat().st_mode for name in ("other", "a.safetensors")]
    assert modes[0] == modes[1]
