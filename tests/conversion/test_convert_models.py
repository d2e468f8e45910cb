"""Modules around modules, modules that become others, and networks that people use."""

import warnings

import pytest
import torch
from convert_cases import TWINS, assert_same_run, assert_same_state, batch, run, small_model, types
from torch.nn.utils import parametrize

from manualnn import nn as ours
from manualnn.conversion import convert, revert


@pytest.fixture
def x():
    return batch()


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
@pytest.mark.one_in(2)
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
