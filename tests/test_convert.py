"""convert and revert: what changes is the class of a layer, and nothing else does."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from manualnn import nn as ours
from manualnn.convert import convert, revert

# Constructor arguments of the layers that cannot be made without.
ARGUMENTS = {
    "Linear": (3, 2),
    "Bilinear": (3, 2, 4),
    "Threshold": (0.1, -0.2),
}

TWINS = sorted(
    name
    for name, cls in vars(ours).items()
    if hasattr(torch.nn, name)
    and isinstance(cls, type)
    and issubclass(cls, torch.nn.Module)
    and cls is not getattr(torch.nn, name)
)

# What the library promises to convert, written out: the list above would shrink with a lost class.
PROMISED = """
    Linear ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Sigmoid LogSigmoid Tanh
    Hardtanh Hardsigmoid Hardswish Hardshrink Softshrink Tanhshrink Softplus Softsign Threshold GLU
    Softmax Softmin Softmax2d LogSoftmax CrossEntropyLoss NLLLoss BCELoss BCEWithLogitsLoss MSELoss
    L1Loss SmoothL1Loss HuberLoss Dropout Dropout1d Dropout2d AlphaDropout
"""


class Doubled(torch.nn.Module):
    """A parametrization that depends on nothing and is easily recognised."""

    def forward(self, weight):
        return 2 * weight


class UsersLinear(torch.nn.Linear):
    pass


def small_model():
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(6, 5),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(0.4),
        torch.nn.Linear(5, 4, bias=False),
        torch.nn.GELU(approximate="tanh"),
        torch.nn.Linear(4, 3),
    ).double()


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


def run(model, x, seed=0):
    """The output of `model` and the gradients of a loss that treats each output differently."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = model(x)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return y.detach(), torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True)


def assert_same_run(got, want):
    torch.testing.assert_close(got[0], want[0])
    assert len(got[1]) == len(want[1])
    for g, w in zip(got[1], want[1], strict=True):
        assert (g is None) == (w is None)
        if w is not None:
            torch.testing.assert_close(g, w)


def assert_same_state(got, want):
    assert list(got) == list(want)
    for key in want:
        assert torch.equal(got[key], want[key]), key


@pytest.fixture(autouse=True)
def one_thread():
    # On tensors this small, threads that share a busy machine mostly wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def x():
    return torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_every_promised_layer_has_a_twin():
    assert set(PROMISED.split()) <= set(TWINS)


@pytest.mark.parametrize("name", TWINS)
def test_each_layer_there_and_back(name):
    layer = getattr(torch.nn, name)(*ARGUMENTS.get(name, ()))
    attributes = dict(vars(layer))
    assert convert(layer) is layer
    assert type(layer) is getattr(ours, name)
    assert dict(vars(layer)) == attributes
    assert revert(layer) is layer
    assert type(layer) is getattr(torch.nn, name)
    assert dict(vars(layer)) == attributes


def test_a_model_keeps_all_but_its_classes(x):
    model = small_model()
    model[4].weight.requires_grad_(False)
    model[1].eval()
    before = copy.deepcopy(model)
    parameters, training = list(model.parameters()), [m.training for m in model.modules()]
    assert convert(model) is model
    assert [type(m) for m in model] == [
        torch.nn.Flatten,
        ours.Linear,
        ours.ReLU,
        ours.Dropout,
        ours.Linear,
        ours.GELU,
        ours.Linear,
    ]
    assert type(model) is torch.nn.Sequential
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert [m.training for m in model.modules()] == training
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True, True]
    assert repr(model) == repr(before)
    assert_same_state(model.state_dict(), before.state_dict())
    assert_same_run(run(model, x), run(before, x))
    revert(model)
    assert types(model) == types(before)
    assert_same_run(run(model, x), run(before, x))


def test_the_arithmetic_is_ours_after_convert_and_torchs_after_revert(x):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 5)).double()
    theirs = type(model(x).grad_fn)
    assert type(convert(model)(x).grad_fn) is not theirs
    assert type(revert(model)(x).grad_fn) is theirs


def test_twice_is_once():
    model = parametrizations.weight_norm(torch.nn.Linear(3, 2))
    model = torch.nn.Sequential(model, torch.nn.ReLU())
    original = types(model)
    assert types(revert(model)) == original
    converted = types(convert(model))
    assert converted != original
    assert types(convert(model)) == converted
    reverted = types(revert(model))
    assert types(revert(model)) == reverted


def test_a_users_subclass_is_left_alone():
    class UsersReLU(ours.ReLU):
        pass

    model = torch.nn.Sequential(UsersLinear(3, 3), UsersReLU(), torch.nn.Linear(3, 3))
    convert(model)
    assert [type(m) for m in model] == [UsersLinear, UsersReLU, ours.Linear]
    revert(model)
    assert [type(m) for m in model] == [UsersLinear, UsersReLU, torch.nn.Linear]


def test_torchs_own_subclass_of_a_layer_is_left_alone():
    attention = convert(torch.nn.MultiheadAttention(4, 2))
    assert type(attention.out_proj) is torch.nn.modules.linear.NonDynamicallyQuantizableLinear


def test_layers_inside_a_users_module_are_converted():
    class Users(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleDict({"a": torch.nn.ModuleList([torch.nn.Tanh()])})
            self.loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))

    model = convert(Users())
    assert type(model) is Users
    assert type(model.parts["a"][0]) is ours.Tanh
    assert type(model.loss) is ours.CrossEntropyLoss
    assert list(model.state_dict()) == ["loss.weight"]


def test_a_layer_used_twice_and_tied_weights(x):
    act = torch.nn.Tanh()
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(6, 6), act, torch.nn.Linear(6, 6), act
    ).double()
    model[3].weight = model[1].weight
    before = copy.deepcopy(model)
    convert(model)
    assert model[2] is model[4] is act and type(act) is ours.Tanh
    assert model[3].weight is model[1].weight
    assert_same_run(run(model, x), run(before, x))


def test_every_kind_of_hook_survives(x):
    calls = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3)).double()
    layer = model[1]
    layer.register_forward_pre_hook(lambda *_: calls.append("forward_pre"))
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_full_backward_pre_hook(lambda *_: calls.append("backward_pre"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("state_dict"))
    layer.register_load_state_dict_post_hook(lambda *_: calls.append("load_state_dict"))
    layer.weight.register_hook(lambda *_: calls.append("tensor"))
    for swap in (convert, revert):
        swap(model)
        calls.clear()
        run(model, x)
        model.load_state_dict(model.state_dict())
        assert sorted(calls) == [
            "backward",
            "backward_pre",
            "forward",
            "forward_pre",
            "load_state_dict",
            "state_dict",
            "tensor",
        ]


def test_a_forward_hook_still_changes_the_output(x):
    model = small_model().eval()
    model[1].register_forward_hook(lambda module, args, out: out + 1)
    want = run(model, x)
    assert_same_run(run(convert(model), x), want)


@pytest.mark.parametrize("hooked", [weight_norm, spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_hooks_survive(hooked, x):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), hooked(torch.nn.Linear(6, 3))).double().eval()
    state, want = copy.deepcopy(model.state_dict()), run(model, x)
    assert len(model[1]._forward_pre_hooks) == 1
    convert(model)
    assert type(model[1]) is ours.Linear
    assert_same_run(run(model, x), want)
    assert_same_state(model.state_dict(), state)


def test_pruning_survives(x):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3)).double()
    prune.random_unstructured(model[1], "weight", amount=0.5)
    want = run(model, x)
    convert(model)
    assert_same_run(run(model, x), want)
    prune.remove(model[1], "weight")
    assert type(model[1]) is ours.Linear and int((model[1].weight == 0).sum()) == 9


def test_an_optimizer_made_before_goes_on(x):
    model = small_model().eval()
    twin = copy.deepcopy(model)
    steps = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin)]
    for step in range(3):
        if step == 1:
            convert(model)
        for m, optimizer in zip((model, twin), steps, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


# Parametrizations: torch puts a class of its own between the module and the module's class.


def test_a_parametrized_layer_is_converted(x):
    torch.manual_seed(0)
    linear = parametrizations.weight_norm(torch.nn.Linear(6, 3))
    model = torch.nn.Sequential(torch.nn.Flatten(), linear).double()
    before = copy.deepcopy(model)
    parameters = list(model.parameters())
    convert(model)
    assert isinstance(linear, ours.Linear)
    assert parametrize.type_before_parametrizations(linear) is ours.Linear
    assert type(linear).__name__ == "ParametrizedLinear"
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert_same_state(model.state_dict(), before.state_dict())
    assert_same_run(run(model, x), run(before, x))
    with parametrize.cached():
        assert model[1].weight is model[1].weight
    revert(model)
    assert parametrize.type_before_parametrizations(linear) is torch.nn.Linear
    assert not isinstance(linear, ours.Linear)
    assert_same_run(run(model, x), run(before, x))


def test_parametrizations_can_be_added_and_removed_afterwards():
    linear = torch.nn.Linear(3, 2)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    parametrize.register_parametrization(linear, "weight", Doubled())
    convert(linear)
    parametrize.register_parametrization(linear, "bias", Doubled())
    parametrize.register_parametrization(linear, "weight", Doubled())
    torch.testing.assert_close(linear(torch.zeros(3)), 2 * bias)
    revert(linear)
    convert(linear)
    assert torch.equal(linear.weight, 4 * weight) and torch.equal(linear.bias, 2 * bias)
    parametrize.remove_parametrizations(linear, "weight")
    assert parametrize.type_before_parametrizations(linear) is ours.Linear
    parametrize.remove_parametrizations(linear, "bias", leave_parametrized=False)
    assert type(linear) is ours.Linear
    assert torch.equal(linear.weight, 4 * weight) and torch.equal(linear.bias, bias)
    assert type(pickle.loads(pickle.dumps(linear))) is ours.Linear


def test_deep_copies_that_share_a_parametrized_class():
    linear = parametrize.register_parametrization(torch.nn.Linear(3, 2), "weight", Doubled())
    outside, inside = copy.deepcopy(linear), copy.deepcopy(linear)
    shared = type(linear)
    assert type(outside) is type(inside) is shared
    model = convert(torch.nn.Sequential(linear, inside))
    assert type(outside) is shared and issubclass(shared, torch.nn.Linear)
    assert not issubclass(shared, ours.Linear)
    parametrize.remove_parametrizations(model[0], "weight")
    want = outside.parametrizations.weight.original * 2
    assert type(model[0]) is ours.Linear
    assert torch.equal(outside.weight, want) and torch.equal(inside.weight, want)
    later = copy.deepcopy(inside)
    parametrize.remove_parametrizations(later, "weight")
    assert type(later) is ours.Linear and torch.equal(later.weight, want)


def test_a_parametrized_users_subclass_is_left_alone():
    linear = parametrize.register_parametrization(UsersLinear(3, 2), "weight", Doubled())
    cls = type(linear)
    assert type(convert(linear)) is cls


def test_a_parametrization_made_of_layers_is_converted_too():
    linear = parametrize.register_parametrization(
        torch.nn.Linear(3, 2), "weight", torch.nn.Sequential(torch.nn.Tanh())
    )
    assert type(convert(linear).parametrizations.weight[0][0]) is ours.Tanh


# Copies and files.


def test_a_converted_model_can_be_copied_pickled_and_saved(x):
    model = convert(small_model()).eval()
    want = run(model, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert types(copied) == types(model)
        assert_same_run(run(copied, x), want)
        assert type(revert(copied)[1]) is torch.nn.Linear
    assert type(model[1]) is ours.Linear


# MLP is ours from the start.


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_revert_turns_an_mlp_into_a_plain_sequential(activation, x):
    torch.manual_seed(0)
    mlp = ours.MLP([6, 5, 4, 3], activation=activation, dropout=0.3).double()
    state, parameters = copy.deepcopy(mlp.state_dict()), list(mlp.parameters())
    want = run(mlp.eval(), x.flatten(1))
    assert convert(mlp, strict=True) is mlp and type(mlp) is ours.MLP
    assert revert(mlp) is mlp
    assert type(mlp) is torch.nn.Sequential
    assert all(type(m).__module__.startswith("torch.nn.") for m in mlp.modules())
    assert_same_state(mlp.state_dict(), state)
    assert all(p is q for p, q in zip(mlp.parameters(), parameters, strict=True))
    assert_same_run(run(mlp, x.flatten(1)), want)
    assert type(pickle.loads(pickle.dumps(mlp))) is torch.nn.Sequential


# strict


def test_strict_names_every_layer_that_stays_and_changes_nothing():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 3)
            self.gain = torch.nn.Parameter(torch.ones(3))

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 3),
        torch.nn.Sequential(UsersLinear(3, 3), torch.nn.LPPool1d(2, 2)),
        torch.nn.LazyLinear(3),
        torch.nn.ReLU(),
        Scaled(),
        torch.nn.Identity(),
    )
    before = types(model)
    with pytest.raises(ValueError) as error:
        convert(model, strict=True)
    first, *named = str(error.value).splitlines()
    assert "4" in first
    assert named == [
        f"  1.0: {__name__}.UsersLinear",
        "  1.1: torch.nn.LPPool1d",
        "  2: torch.nn.LazyLinear",
        f"  4: {__name__}.{Scaled.__qualname__}",
    ]
    assert types(model) == before
    assert type(convert(model)[0]) is ours.Linear


def test_strict_accepts_what_holds_no_arithmetic():
    model = torch.nn.ModuleDict(
        {
            "a": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4), torch.nn.Tanh()),
            "b": torch.nn.ModuleList([torch.nn.Unflatten(1, (2, 2)), torch.nn.Identity()]),
            "c": torch.nn.ModuleList(),
            "d": torch.nn.ParameterList(),
            "e": torch.nn.Sequential(torch.nn.PixelShuffle(2), torch.nn.PixelUnshuffle(2)),
            "f": torch.nn.ChannelShuffle(2),
            "loss": torch.nn.CrossEntropyLoss(),
        }
    )
    assert type(convert(model, strict=True)["loss"]) is ours.CrossEntropyLoss
    assert convert(model, strict=True) is model


def test_strict_names_the_model_itself():
    with pytest.raises(ValueError, match=r"the model itself.*torch\.nn\.Bilinear"):
        convert(torch.nn.Bilinear(2, 2, 2), strict=True)


def test_strict_sees_parametrized_layers_and_their_parametrizations():
    # Without a bias, a parametrized layer has no parameter in its own table and has a child.
    pool = torch.nn.Bilinear(2, 2, 2, bias=False)
    model = torch.nn.Sequential(
        parametrize.register_parametrization(torch.nn.Linear(3, 2), "weight", Doubled()),
        parametrize.register_parametrization(pool, "weight", torch.nn.Tanh()),
    )
    with pytest.raises(ValueError) as error:
        convert(model, strict=True)
    assert str(error.value).splitlines()[1:] == [
        f"  0.parametrizations.weight.0: {__name__}.Doubled",
        "  1: torch.nn.Bilinear",
    ]


def test_a_replaced_forward_is_left_alone_and_named():
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
    model[0].forward = torch.neg
    with pytest.raises(ValueError, match=r"\n  0: torch\.nn\.ReLU, whose forward was replaced$"):
        convert(model, strict=True)
    assert [type(m) for m in convert(model)] == [torch.nn.ReLU, ours.ReLU]


def test_strict_accepts_a_users_subclass_that_keeps_our_forward():
    class Named(ours.Linear):
        def __init__(self):
            super().__init__(3, 3)

    class Other(ours.Linear):
        def forward(self, input):
            return torch.nn.functional.linear(input, self.weight)

    convert(torch.nn.Sequential(Named()), strict=True)
    with pytest.raises(ValueError, match="Other"):
        convert(torch.nn.Sequential(Other(3, 3)), strict=True)


@pytest.mark.parametrize("swap", [convert, revert, lambda m: convert(m, strict=True)])
@pytest.mark.parametrize("not_a_module", [None, [torch.nn.ReLU()], torch.nn.ReLU, torch.relu])
def test_what_is_not_a_module_is_refused(swap, not_a_module):
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, not "):
        swap(not_a_module)


# Modules around modules, and modules that become others.


def test_a_lazy_layer_is_converted_once_it_knows_its_size(x):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3, dtype=torch.float64))
    assert type(convert(model)[1]) is torch.nn.LazyLinear
    model(x)
    assert type(model[1]) is torch.nn.Linear
    assert type(convert(model, strict=True)[1]) is ours.Linear


def test_compiled_before_conversion(x):
    torch.compiler.reset()
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    model = small_model().eval()
    compiled = torch.compile(model, backend=backend)
    want = run(compiled, x)
    run(compiled, x)
    assert len(compilations) == 1
    assert convert(compiled) is compiled
    assert type(model[1]) is ours.Linear
    assert_same_run(run(compiled, x), want)
    # The code compiled for torch's layers has not been taken for ours.
    assert len(compilations) > 1
    assert type(revert(compiled)._orig_mod[1]) is torch.nn.Linear
    assert_same_run(run(compiled, x), want)
    torch.compiler.reset()


def test_a_compiled_parametrized_layer_is_not_taken_for_parametrized_itself():
    linear = parametrize.register_parametrization(torch.nn.Linear(3, 2), "weight", torch.nn.Tanh())
    compiled = torch.compile(linear, backend="eager")
    assert parametrize.is_parametrized(compiled)
    cls = type(compiled)
    convert(compiled, strict=True)
    assert type(compiled) is cls
    assert parametrize.type_before_parametrizations(linear) is ours.Linear


def test_scripted_models_are_left_alone_and_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()))
    before = types(scripted)
    assert types(convert(scripted)) == before
    with pytest.raises(ValueError, match=r"2 of its layers.*\n  0: .*\n  1: "):
        convert(scripted, strict=True)


def test_a_traced_graph_is_converted(x):
    model = small_model().eval()
    want = run(model, x)
    traced = convert(torch.fx.symbolic_trace(model), strict=True)
    assert type(traced.get_submodule("1")) is ours.Linear
    assert_same_run(run(traced, x), want)


def test_data_parallel(x):
    model = torch.nn.DataParallel(small_model()).eval()
    want = run(model, x)
    convert(model, strict=True)
    assert type(model) is torch.nn.DataParallel and type(model.module[1]) is ours.Linear
    assert_same_run(run(model, x), want)


def test_a_class_property_of_that_name_does_not_deceive():
    class Disguised(torch.nn.Module):
        @property
        def __class__(self):
            return torch.nn.ReLU

    model = torch.nn.Sequential(Disguised())
    assert type(convert(model)[0]) is Disguised
    with pytest.raises(ValueError, match="Disguised"):
        convert(model, strict=True)


def test_functional_call_and_exchange_of_weights(x):
    model, other = convert(small_model()).eval(), small_model().eval()
    other.load_state_dict(model.state_dict())
    want = run(other, x)
    assert_same_run(run(model, x), want)
    fresh = {name: p.detach() + 1 for name, p in model.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(model, fresh, (x,)),
        torch.func.functional_call(other, fresh, (x,)),
    )


# Networks that people use, narrower or shallower, with every kind of layer that they have.


def resnet18(models):
    return models.resnet18(weights=None, num_classes=10)


def vgg11(models):
    model = models.vgg11(weights=None, num_classes=10, init_weights=False)
    for place, sizes in {0: (512 * 7 * 7, 32), 3: (32, 32), 6: (32, 10)}.items():
        model.classifier[place] = torch.nn.Linear(*sizes)
    return model


def convnext_tiny(models):
    model = models.convnext_tiny(weights=None, num_classes=10)
    model.features[5] = model.features[5][:2]
    return model


def vit_b_16(models):
    model = models.vit_b_16(weights=None, num_classes=10, image_size=32, dropout=0.1)
    model.encoder.layers = model.encoder.layers[:2]
    # Starts at zero, which would hide everything before it.
    torch.nn.init.normal_(model.heads.head.weight)
    return model


@pytest.mark.parametrize("build", [resnet18, vgg11, convnext_tiny, vit_b_16])
def test_torchvision_models(build):
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    torch.manual_seed(0)
    model = build(models).double()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = types(model)
    want = run(model, image)
    model.load_state_dict(state)
    convert(model)
    assert not set(types(model).values()) & {getattr(torch.nn, name) for name in TWINS}
    assert set(types(model).values()) & {getattr(ours, name) for name in TWINS}
    assert_same_state(model.state_dict(), state)
    got = run(model, image)
    assert got[0].abs().max() > 1e-3 and got[1][0].abs().max() > 0
    assert_same_run(got, want)
    revert(model)
    assert types(model) == before
    model.load_state_dict(state)
    assert_same_run(run(model, image), want)
