"""Rules for what writes in place: on tensors, on views, without history, and past every version counter."""

from fuzzing.author import rule

IN_PLACE = (
    "mul_(0.5)",
    "add_(0.5)",
    "mul_({g})",
    "add_({g})",
    "sub_({g})",
    "div_(2)",
    "neg_()",
    "relu_()",
    "sigmoid_()",
    "tanh_()",
    "clamp_(-0.5, 0.5)",
    "exp_()",
    "zero_()",
    "fill_(0.3)",
    "copy_({g})",
    "masked_fill_({h}.detach() > 0, 0.1)",
    "addcmul_({g}, {g})",
    "lerp_({g}, 0.5)",
    "square_()",
    "abs_()",
    "sin_()",
    "add_({g}, alpha=0.3)",
    "copy_({h}.flip(0))",
    "index_fill_(0, torch.tensor([0]), 0.2)",
    "index_add_(0, torch.tensor([0]), {h}[:1].detach())",
    "cumsum_(-1)",
    "floor_()",
    "tril_()",
    "uniform_()",
    "normal_()",
    "bernoulli_(0.5)",
    "subtract_({g})",
    "true_divide_(1.5)",
    "pow_(2)",
)
METADATA = (
    "t_()",
    "unsqueeze_(0)",
    "squeeze_()",
    "transpose_(0, -1)",
    "swapaxes_(0, -1)",
    "detach_()",
    "requires_grad_()",
    "retain_grad()",
    "as_strided_((2,), (1,))",
    "resize_(2)",
)


def _one(a, h):
    return a.one(*IN_PLACE).format(h=h, g=a.broad(h))


@rule(5, "write")
def in_place(a):
    h = a.pick()
    return f"{h}.{_one(a, h)}"


@rule(1, "write")
def in_place_bound(a):
    """What comes back is the same tensor under another name."""
    h = a.pick()
    return f"{a.new()} = {h}.{_one(a, h)}"


@rule(3, "write")
def augmented(a):
    h = a.pick()
    g = a.broad(h)
    return a.one(
        f"{h} += {g}",
        f"{h} *= {g}",
        f"{h} -= {g}",
        f"{h} /= 2",
        f"{h} += 0.5",
        f"{h} *= 0.5",
        f"{h} **= 2",
        f"{h} -= {h}.mean()",
    )


@rule(3, "write")
def of_a_view(a):
    h = a.pick(lambda t: t.dim() >= 1)
    v = a.one(
        "{h}[0]",
        "{h}[..., 0]",
        "{h}[:1]",
        "{h}[..., ::2]",
        "{h}.t()",
        "{h}.transpose(0, -1)",
        "{h}.view(-1)",
        "{h}.chunk(2, -1)[0]",
        "{h}.flatten()",
        "{h}.unsqueeze(0)",
        "{h}.diagonal()",
        "{h}.detach()",
        "{h}.narrow(0, 0, 1)",
        "{h}.reshape(-1)",
        "{h}.permute(1, 0)",
    ).format(h=h)
    return a.one(
        f"{v}.mul_(1.5)",
        f"{v}.add_(0.5)",
        f"{v}.zero_()",
        f"{v}.relu_()",
        f"{v}.sigmoid_()",
        f"{v}.copy_(-{v})",
        f"{v}.clamp_(-0.4, 0.4)",
    )


@rule(2, "write")
def item(a):
    h = a.pick(lambda t: t.dim() >= 1)
    key = a.one(
        "0",
        "..., 0",
        ":1",
        "[0]",
        "..., ::2",
        f"{h}.detach() > 0",
        "torch.tensor([0])",
        "...",
        "np.array([0])",
    )
    value = a.one("0.5", f"{h}[{key}] * 2", f"{h}.mean()", f"{h}.detach().max()")
    return a.one(f"{h}[{key}] = {value}", f"{h}[{key}] += 0.5", f"{h}[{key}] *= 0.5")


@rule(2, "write")
def functional_in_place(a):
    h = a.pick()
    call = a.one(
        "F.relu({h}, inplace=True)",
        "F.silu({h}, inplace=True)",
        "F.elu({h}, 0.5, True)",
        "F.dropout({h}, 0.2, True, True)",
        "F.hardtanh({h}, -0.6, 0.6, inplace=True)",
        "F.leaky_relu_({h}, 0.2)",
        "torch.relu_({h})",
        "F.threshold({h}, 0.1, 0.0, True)",
        "F.selu({h}, inplace=True)",
        "F.mish({h}, inplace=True)",
        "F.hardswish({h}, inplace=True)",
        "torch.sigmoid_({h})",
        "torch.tanh_({h})",
        "F.relu6({h}, inplace=True)",
        "F.celu({h}, 1.0, True)",
        "torch.dropout_({h}, 0.3, True)",
        "F.rrelu({h}, inplace=True)",
        "torch.neg_({h})",
        "torch.square_({h})",
        "torch.clamp_({h}, min=-0.2)",
    )
    return f"{a.new()} = {call.format(h=h)}" if a.chance(0.7) else call.format(h=h)


@rule(1.5, "write")
def without_history(a):
    h = a.pick()
    line = a.one(
        f"{h}.{_one(a, h)}",
        f"{h}.{_one(a, h)}",
        f"torch.add({h}, 0.5, out={h})",
        f"torch.sin({h}, out={h})",
        f"torch.cat([{h}[:1], {h}[1:] * 2], out={h})",
        f"torch._foreach_mul_([{h}], 0.5)",
        f"torch._foreach_add_([{h}, {h}], 0.1)",
        f"{h}.set_({h} * 2)",
        f"nn.init.constant_({h}, 0.2)",
        f"F.relu({h}, inplace=True)",
        f"{h}[...] = 0.3",
        f"nn.utils.clip_grad_norm_([{h}], 1.0)",
    )
    return f"with torch.no_grad():\n    {line}"


@rule(1, "write")
def out(a):
    """Into a tensor that needs no gradient."""
    h, o = a.pick(), a.new()
    call = a.one(
        "torch.add({h}.detach(), 1.0, out={o})",
        "torch.sin({h}.detach(), out={o})",
        "torch.mul({h}.detach(), {h}.detach(), out={o})",
        "torch.cat([{h}.detach()], out={o})",
        "torch.sigmoid({h}.detach(), out={o})",
        "torch.matmul({h}.detach(), {h}.detach().mT, out={o})",
    )
    return f"{o} = {h}.detach() * 3\n{a.new()} = {h} * {o}\n{call.format(h=h, o=o)}"


@rule(1, "write")
def metadata(a):
    h = a.pick()
    return f"{h}.{a.one(*METADATA)}"


@rule(1.2, "unseen")
def unseen(a):
    """Where no version counter shows it."""
    h = a.pick()
    return a.one(
        f"{h}.data.mul_(0.5)",
        f"{h}.data.add_(0.25)",
        f"{h}.data.clamp_(-0.4, 0.4)",
        f"{h}.data.copy_({h}.data.flip(0))",
        f"{h}.data[0] = 0.2",
        f"{h}.detach().numpy()[...] *= 0.5",
        f"{h}.data = {h}.data * 0.5",
        f"np.asarray({h}.detach())[...] += 0.1",
        f"torch.from_dlpack({h}.detach()).mul_(0.5)",
        f"np.from_dlpack({h}.detach())[...] *= 1.5",
        f"torch.from_numpy({h}.detach().numpy()).add_(0.2)",
        f"gathered({h}, {h} * 0.5)",
        f"with unversioned({h}), torch.no_grad():\n    {h}.mul_(0.5)",
        f"{h}.untyped_storage().fill_(0)",
        f"with torch._C.DisableTorchFunction(), torch.no_grad():\n    {h}.mul_(0.5)",
        f"with torch._C.DisableTorchFunction():\n    {h}.mul_(0.5)",
        f"with torch.no_grad():\n    {h}.data.mul_(2.0)",
        f"{h}.detach().mul_(0.5)",
        f"with torch.inference_mode():\n    {h}.mul_(0.5)",
        f"torch.tensor(0.0).set_({h}.detach()).mul_(0.5)",
        f"{h}.detach().view(torch.uint8).fill_(0)",
    )
