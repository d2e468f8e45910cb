"""``python -m manualnn kernel``: the path from a formula to C and Triton, printed."""

import pytest
import torch
from kernel_cases import need_every_kind
from tool_helpers import module_of_ones_own, runner

from manualnn.kernels import build
from manualnn.ops.catalogue import elementwise
from manualnn.tools.kernels import options_of, printed

MODULE = """
import torch
from manualnn import Activation

class Chooses(Activation):
    @staticmethod
    def g(z):
        return z if z.sum() > 0 else -z

    @staticmethod
    def g_prime(z):
        return torch.ones_like(z)

class Scaled(Activation):
    @staticmethod
    def g(z, scale):
        return z * scale

    @staticmethod
    def g_prime(z, scale):
        return scale * torch.ones_like(z)
"""

theirs = module_of_ones_own("their_activations", MODULE)
run = runner("kernel")


@need_every_kind
def test_the_whole_path(capsys):
    status, out, err = run(capsys, "silu")
    assert (status, err) == (0, "")
    for part in (
        "=== SiLU: a = g",
        "return z * sigmoid(z)",
        "t3 = 1 + t2\n",
        "float t3 = 1.0f + t2;",
        "void run(count n, int threads, void **tensors)",
        "=== SiLU: dz = da ∗ g_prime",
        "@triton.jit",
    ):
        assert part in out, part


def test_a_users_own(theirs, capsys):
    status, out, _ = run(capsys, "snake:Snake")
    assert status == 0 and out.count("=== Snake") == 3
    assert (
        "const float alpha = *(const float *)tensors[2];" in out
        and "d_alpha = Σ da ∗ d_alpha" in out
    )


@need_every_kind
def test_one_part(capsys):
    status, out, _ = run(capsys, "softplus", "--options", "2, 7", "--only", "expression")
    assert status == 0 and "t1 = z · 2\nt2 = t1 > 7\n" in out
    assert "--- c" not in out and "--- triton" not in out


def test_another_dtype(capsys):
    _, out, _ = run(capsys, "softsign", "--dtype", "bfloat16", "--only", "c")
    assert "from_bfloat16(z[i])" in out and "to_bfloat16(t" in out
    _, out, _ = run(capsys, "hardtanh", "--dtype", "float64", "--only", "c")
    assert "double z_i = z[i];" in out


def test_what_is_not_printed(theirs, capsys):
    status, out, _ = run(capsys, "their_activations:Chooses", "--only", "c")
    assert status == 1 and "not printed: PyTorch's passes serve" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no_such"], "'no_such' is none of celu, elu"),
        (["torch:Tensor"], "torch:Tensor is no Activation"),
        (["their_activations:Scaled"], "give --options, scale"),
        (["softplus", "--options", "2"], "Softplus takes beta, threshold: 1 given"),
        (["softplus", "--options", "a, b"], "are no numbers"),
    ],
)
def test_a_mistake_is_one_line(theirs, capsys, arguments, told):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and told in err and err.count("\n") == 1


@need_every_kind
def test_every_activation_is_printed(monkeypatch):
    """And nothing is built for it."""
    monkeypatch.setattr(build, "built", None)
    for cls in elementwise():
        for shown in printed(cls, options_of(cls, None), torch.float32):
            assert shown.c and shown.triton, (cls, shown.title)
            compile(shown.triton, "triton", "exec")
