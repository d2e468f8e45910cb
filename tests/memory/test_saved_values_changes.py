"""What could make a recipe wrong: a source that changes after it was recorded, in every way that we know."""

import copy

import pytest
import torch
from small_models import (
    MODELS,
    Residual,
    assert_equal,
    assert_same_run,
    gradients,
    loss_of,
    pair,
    pictures,
    second_derivatives,
)

from manualnn import convert

each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)


class Changed(torch.nn.Module):
    """A convolution, a norm, ``change``, a convolution: what happens to the norm's output in between?"""

    def __init__(self, change):
        super().__init__()
        self.conv1, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
        self.act, self.conv2 = torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)
        self.change = change

    def forward(self, x):
        y = self.norm(self.conv1(x))
        y = self.change(self, y)
        return self.conv2(y)


def _unseen(t, write):
    """Written over where no function mode looks."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        write(t)


def seen_in_place(self, y):
    y += 0.5
    return y


def in_place_without_history(self, y):
    with torch.no_grad():
        y.mul_(1.5)
    return y


def in_place_unseen(self, y):
    _unseen(y, lambda t: t.mul_(1.5))
    return y


def view_in_place(self, y):
    y[:, :2].mul_(3.0)
    return y


def view_in_place_unseen(self, y):
    _unseen(y[:, 1:3], lambda t: t.zero_())
    return y


def item_assigned(self, y):
    y[:, 0] = 2.0
    return y


def base_in_place(self, y):
    flat = y.flatten(1)
    with torch.no_grad():
        y.add_(1.0)
    return flat.unflatten(1, y.shape[1:])


def relu_then_in_place(self, y):
    a = self.act(y.sigmoid() * 2)
    b = a * 1.0
    b.mul_(2.0)
    return b


def unknown_in_place(self, y):
    a = y * 2
    with torch.no_grad():
        a.clamp_(-0.5, 0.5)
    return a


def copied_over(self, y):
    a = y * 2
    a.copy_(y.flip(1))
    return a


def copied_over_in_part(self, y):
    a = y * 2
    a[:, :4].copy_(y[:, 4:])
    return a


def written_out(self, y):
    a = y.detach() * 3
    torch.add(y.detach(), 1.0, out=a)
    return y * a


def swapped_data(self, y):
    a = y * 2
    a.data = a.data + 1
    return a


def data_after_saving(self, y):
    a = self.act(y)  # saves its output, by its recipe
    a.data.mul_(2.0)
    return a


def data_of_a_source(self, y):
    x = y * 2 + torch.ones_like(y)
    a = self.act(x + y)
    x.data.mul_(3.0)
    x.detach().numpy()[:] += 1
    return a * 2


def data_of_what_only_a_recipe_saves(self, y):
    piece = torch.full((1, 8, 1, 1), 0.5, dtype=y.dtype)
    a = self.act(self.norm(y) + piece)
    piece.data.mul_(3.0)
    return a


def scaled_by_buffer_that_moves(self, y):
    noise = torch.full((1, 8, 1, 1), 2.0, dtype=y.dtype)
    a = y * noise
    return a * noise.clone()


def piece_then_in_place(self, y):
    """The piece of a concatenation is overwritten: torch saves the concatenation, so that is allowed."""
    p = y * 2
    joined = torch.cat([p, y], 1)
    p.add_(1.0)
    return joined[:, :8] + joined[:, 8:] + p


def several_consumers(self, y):
    a = self.act(y)
    return a * a.sigmoid() + a.tanh() * y + a


def of_another_dtype(self, y):
    return y.float().double() * y


def by_keyword_and_changed(self, y):
    """torch saves nothing of a sum. If a keyword argument hides a tensor, its sum is saved."""
    shift = torch.ones(1, 8, 1, 1, dtype=y.dtype)
    a = self.act(torch.add(y, other=shift))
    shift.fill_(9.0)
    return a


def index_that_changes(self, y):
    index = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    a = y[:, index]
    index.zero_()
    return a * 2


def index_select_that_changes(self, y):
    index = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    return y.index_select(1, index) * 2


def source_then_in_place(self, y):
    """A source that torch's sum would not save, overwritten afterwards, with and without a history."""
    small = torch.full((1, 8, 1, 1), 0.5, dtype=y.dtype)
    weighted = self.norm(y) + small
    small.mul_(3.0)
    piece = torch.ones(4, 8, 1, 1, dtype=y.dtype)
    a = self.act(weighted + piece)
    with torch.no_grad():
        piece.zero_()
    return a


def inference_tensor(self, y):
    with torch.inference_mode():
        shift = torch.ones(1, 8, 1, 1, dtype=y.dtype)
    return self.act(y + shift)


def sparse_and_strided(self, y):
    eye = torch.eye(8, dtype=y.dtype).to_sparse()
    return torch.sparse.mm(eye, y.transpose(0, 1).reshape(8, -1)).view(8, 4, 6, 6).transpose(0, 1)


def complex_views(self, y):
    return torch.view_as_real(torch.complex(y, y * 2).conj().resolve_conj()).sum(-1)


CHANGES = [
    seen_in_place,
    in_place_without_history,
    in_place_unseen,
    view_in_place,
    view_in_place_unseen,
    item_assigned,
    base_in_place,
    relu_then_in_place,
    unknown_in_place,
    copied_over,
    copied_over_in_part,
    written_out,
    swapped_data,
    data_after_saving,
    data_of_a_source,
    data_of_what_only_a_recipe_saves,
    scaled_by_buffer_that_moves,
    piece_then_in_place,
    several_consumers,
    of_another_dtype,
    by_keyword_and_changed,
    index_that_changes,
    index_select_that_changes,
    source_then_in_place,
    inference_tensor,
    sparse_and_strided,
    complex_views,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_changes_between_are_seen(change, mode):
    torch.manual_seed(0)
    theirs = Changed(change).double().train(mode)
    ours = convert(copy.deepcopy(theirs))
    x = pictures(dtype=torch.float64)
    refused = [changed_and_refused(model, x) for model in (ours, theirs)]
    assert refused[0] == refused[1]
    if refused[0]:
        return
    assert_same_run(ours, theirs, x)
    for a, b in zip(second_derivatives(ours, x), second_derivatives(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def changed_and_refused(model, x):
    try:
        gradients(model, x)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return True
    return False


def _graph(model, x):
    return loss_of(model(x)), list(model.parameters())


@pytest.mark.parametrize("what", ["conv1.weight", "norm.weight", "norm.bias", "conv2.weight"])
def test_parameters_that_change_before_backward(what):
    """Refused if torch refuses and ours saves it, too; otherwise the gradient is that of before the change."""
    torch.manual_seed(0)
    theirs = Changed(lambda self, y: self.act(y))
    ours = convert(copy.deepcopy(theirs))
    loss, wrt = _graph(theirs, pictures())
    expected = torch.autograd.grad(loss, wrt)
    refused = []
    for model in (ours, theirs):
        loss, wrt = _graph(model, pictures())
        with torch.no_grad():
            model.get_parameter(what).add_(1.0)
        try:
            assert_equal(torch.autograd.grad(loss, wrt), expected)
            refused.append(False)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            refused.append(True)
    # torch saves the first weight for a gradient of the pictures that no one asked for.
    assert refused == ([False, True] if what == "conv1.weight" else [refused[1]] * 2)


def test_a_parameter_that_is_only_added_may_change_before_backward():
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            self.shift = torch.nn.Parameter(torch.randn(1, 8, 1, 1))
            self.act, self.last = torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.last(self.act(self.norm(self.conv(x)) + self.shift))

    torch.manual_seed(0)
    theirs = Shifted()
    results = []
    for model in (convert(copy.deepcopy(theirs)), theirs):
        loss, wrt = _graph(model, pictures())
        with torch.no_grad():
            model.shift.add_(5.0)
        results.append(torch.autograd.grad(loss, wrt))
    assert_equal(*results)


def test_running_statistics_that_move_before_backward():
    torch.manual_seed(0)
    theirs = Changed(lambda self, y: self.act(y)).eval()
    ours = convert(copy.deepcopy(theirs))
    _, expected = gradients(theirs, pictures())
    x = pictures().requires_grad_()
    loss, wrt = _graph(ours, x)
    ours.train()(pictures(seed=9) * 5)  # moves them in place
    assert_equal(torch.autograd.grad(loss, [*wrt, x]), expected)


@each_model
def test_an_optimizer_that_steps_during_backward(cls):
    """Each parameter is updated as soon as its gradient is there, while earlier layers still wait."""
    ours, theirs = pair(cls)

    def step(p):
        with torch.no_grad():
            p.sub_(p.grad, alpha=0.1)
        p.grad = None

    for model in (ours, theirs):
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        for i in range(3):
            torch.manual_seed(i)
            loss_of(model(pictures(seed=i))).backward()
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())


def test_what_is_saved_and_then_overwritten_is_refused():
    """After the forward pass nothing is recorded: what backward relies on must be unchanged."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

        def forward(self, x):
            z = self.conv(x)
            return z, self.norm(z)

    model = convert(Two())
    z, y = model(pictures())
    with torch.no_grad():
        z.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of(y).backward()


@pytest.mark.parametrize("between", ["copy_", "view", "same"])
def test_what_is_saved_is_not_overwritten_in_backward(between):
    """A recomputed activation may overwrite what was recomputed for it alone; not what is saved."""

    class Saves(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.act, self.last = torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)

        def forward(self, x):
            z = self.conv(x)
            normed = self.norm(z)  # saves z
            if between == "copy_":
                other = (z * 1).copy_(z)
            elif between == "view":
                other = z.flatten(1).unflatten(1, z.shape[1:])
            else:
                other = z.contiguous()
            return self.last(self.act(other)) + self.last(self.act(normed))

    torch.manual_seed(0)
    theirs = Saves()
    ours = convert(copy.deepcopy(theirs))
    assert_same_run(ours, theirs, pictures())
    torch.manual_seed(0)
    loss, wrt = _graph(ours, pictures())
    first = torch.autograd.grad(loss, wrt, retain_graph=True)
    assert_equal(first, torch.autograd.grad(loss, wrt))


def test_hooks_see_and_replace():
    ours, theirs = pair(Residual)
    seen = {}
    for name, model in (("ours", ours), ("theirs", theirs)):
        model.blocks[1].bn1.register_forward_hook(lambda m, args, out: out * 1.5)
        model.blocks[1].conv2.register_forward_pre_hook(lambda m, args: (args[0] + 0.25,))
        model.blocks[2].bn2.register_forward_hook(lambda m, args, out: out.mul_(0.5))
        model.blocks[2].register_full_backward_hook(lambda m, d_in, d_out: (d_in[0] * 2,))

        def grab(m, args, out, name=name):
            out.register_hook(lambda g: seen.setdefault(name, []).append(g.clone()))
            out.retain_grad()

        model.blocks[0].bn3.register_forward_hook(grab)
    assert_same_run(ours, theirs, pictures())
    assert_equal(seen["ours"], seen["theirs"])
