"""Right modules whose parameters or buffers are complex: spectral layers, linear recurrences, rotations."""

import torch
from catalogue import Entry, enter, normals
from torch import nn
from torch.autograd import Function

from functions_right.modules import seeded

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: the lowest frequencies are mixed by complex weights."""

    def __init__(self, channels=3, modes=4):
        super().__init__()
        self.w = nn.Parameter(torch.randn(channels, channels, modes, dtype=torch.cfloat) / 3)

    def forward(self, x):
        low = torch.fft.rfft(x)[..., : self.w.shape[-1]]
        return torch.fft.irfft(torch.einsum("bik,iok->bok", low, self.w), n=x.shape[-1])


@right("a_fourier_layer", "complex weights", normals((2, 3, 8)), module=True)
@seeded
def fourier():
    return Spectral()


@right("a_fourier_layer_and_its_twin", "complex weights", normals((2, 3, 8)), module=True)
@seeded
def operator():
    return nn.Sequential(nn.Conv1d(3, 3, 1), Spectral(), nn.GELU(), nn.Conv1d(3, 2, 1))


@right("a_linear_recurrent_unit", "complex parameters and states", normals((2, 4, 3)), module=True)
class Recurrence(nn.Module):
    """h = λh + Bx, y = Re(Ch): the states are complex, what comes in and out is real."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.log_radius = nn.Parameter(torch.rand(4).log())
            self.angle = nn.Parameter(3 * torch.rand(4))
            self.B = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))
            self.C = nn.Parameter(torch.randn(3, 4, dtype=torch.cfloat))

    def forward(self, x):
        eigenvalues = torch.polar((-self.log_radius.exp()).exp(), self.angle)
        h, outputs = torch.zeros(len(x), 4, dtype=self.B.dtype), []
        for step in x.unbind(1):
            h = eigenvalues * h + step.to(self.B.dtype) @ self.B.T
            outputs.append((h @ self.C.T).real)
        return torch.stack(outputs, 1)


@right("a_rotation_by_complex_numbers", "a complex buffer", normals((2, 5, 2)), module=True)
class Rotation(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(5), torch.arange(5.0)))

    def forward(self, x):
        turned = torch.view_as_complex(x.contiguous()) * self.turns
        return torch.view_as_real(turned) * self.turns.imag.sum()


class Product(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        dx, dw = dz * w.conj(), (dz * x.conj()).sum(0)
        return dx if x.is_complex() else dx.real, dw


@right("a_complex_scale_by_hand", "the conjugate where it belongs", normals((4, 5)), module=True)
class Scale(nn.Module):
    product = Product

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(5, dtype=torch.cfloat, generator=generator))

    def forward(self, x):
        return self.product.apply(x, self.w).abs()
