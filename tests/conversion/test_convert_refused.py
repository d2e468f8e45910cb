"""What a converted model cannot be given to says so in one line, where it happens."""

import copy

import pytest
import torch
from torch import nn

import manualnn

pytestmark = pytest.mark.filterwarnings("ignore")


def network():
    return nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )


@pytest.mark.parametrize("keep", ["less", "all"])
@pytest.mark.parametrize("prepare", ["prepare", "prepare_qat", "quantize_dynamic"])
def test_quantization_does_not_pass_over_layers_without_a_word(prepare, keep):
    quantization = torch.ao.quantization

    def run(model):
        if prepare == "quantize_dynamic":
            return quantization.quantize_dynamic(model, {nn.Linear})
        model.train(prepare == "prepare_qat")
        model.qconfig = quantization.get_default_qat_qconfig("x86")
        return getattr(quantization, prepare)(model)

    model = manualnn.convert(network(), keep=keep)
    said = r"by their exact type .* manualnn.revert\(model\)"
    if prepare == "quantize_dynamic":  # which asks for torch's own Linear alone
        with pytest.warns(UserWarning, match=said):
            run(copy.deepcopy(model))
    else:
        with pytest.raises(TypeError, match=said) as caught:
            run(copy.deepcopy(model))
        assert "\n" not in str(caught.value)
    names = [type(m).__name__ for m in run(manualnn.revert(model)).modules()]
    assert names == [type(m).__name__ for m in run(network()).modules()]


def test_a_layer_that_is_not_to_be_quantized_may_be_told_so():
    layer = manualnn.nn.Linear(3, 2)
    assert not hasattr(layer, "qconfig")
    with pytest.warns(UserWarning, match="exact type"):
        layer.qconfig = None
    assert layer.qconfig is None and copy.deepcopy(layer).qconfig is None
    del layer.qconfig
    assert not hasattr(layer, "qconfig")


def test_symbolic_tracing_says_what_to_do():
    model = manualnn.convert(network())
    with pytest.raises(torch.fx.proxy.TraceError, match=r"^\d: .*manualnn.revert\(model\) first"):
        torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 2, 2)
    model.eval()
    expected = model(x)
    assert torch.equal(torch.fx.symbolic_trace(manualnn.revert(model))(x), expected)


def test_feature_extraction_says_what_to_do():
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    model = manualnn.convert(torchvision.models.resnet18(weights=None))
    with pytest.raises(ValueError, match=r"manualnn.revert\(model\) first"):
        create_feature_extractor(model, {"layer4": "features"})
    create_feature_extractor(manualnn.revert(model), {"layer4": "features"})
