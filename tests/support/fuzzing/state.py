"""Rules for what a model remembers between calls: buffers, scalars, lists, arrays, running statistics."""

from fuzzing.author import rule
from fuzzing.program import Statement

CHANGES = (
    "{c}.data.add_(0.5)",
    "{c}.add_(0.5)",
    "{c}.mul_(0.9)",
    "{c}.copy_({c} * 0.5)",
    "{c}.numpy()[...] *= 0.5",
    "{c}.data.mul_(1.5)",
    "{c}.fill_(0.3)",
    "{c}.data = {c}.data + 0.2",
    "{c}.zero_()",
    "{c} = {c} + 0.25",
    "gathered({c}, {c} * 0.5)",
    "np.asarray({c})[...] += 0.5",
    "{c}.data.copy_(-{c})",
    "{c}.normal_()",
    "torch.from_dlpack({c}).add_(0.5)",
    "{c}.lerp_(torch.ones_like({c}), 0.1)",
)


def _change(a, c):
    """How that buffer is going to change: here, now and then, else where the script says so."""
    # Inside of a function a transform may run: what is assigned there would be a tensor of the transform.
    change = a.one(*[s for s in CHANGES if not a.depth or " = " not in s]).format(c=c)
    a.moved.append(change)
    return change


@rule(4, "state")
def buffer(a):
    h = a.pick()
    shape = tuple(a.value(h).shape)
    shape = a.one(shape, shape[-1:], (), (1,) * (len(shape) - 1) + shape[-1:], shape[1:], (1,))
    kind = a.one(
        "nn.Buffer(torch.rand({s}))",
        "nn.Buffer(torch.rand({s}))",
        "torch.rand({s})",
        "nn.Buffer(torch.rand({s}).float())",
    )
    c = a.buffer(kind.format(s=shape))
    use = a.one(
        "{h} - {c}",
        "{h} + {c}",
        "{h} * {c}",
        "F.relu({h} - {c})",
        "torch.where({h} > {c}, {h}, {c})",
        "{h} / (1 + {c})",
        "({h} - {c}).sigmoid()",
        "torch.add({h}, {c}, alpha=2)",
        "{c} - {h}",
        "torch.maximum({h}, {c})",
        "({h} + {c}).tanh()",
        "torch.where({h} > {c}, {h}, 0.1)",
        "torch.lerp({h}, {c}.expand_as({h}), 0.5)",
        "torch.cat([{h}, {c}.expand_as({h})], -1)",
        "F.linear({h}, {c})",
        "({h} * {c}).relu()",
        "F.layer_norm({h}, {c}.shape, {c}, {c})",
        "F.batch_norm({h}, {c}, {c}, training=False)",
        "F.batch_norm({h}, {c}, {c} + 1, training=True)",
    )
    line = f"{a.new()} = {use.format(h=h, c=c)}"
    change = _change(a, c)
    if a.chance(0.25):
        return a.one(
            f"{line}\nwith torch.no_grad():\n    {change}",
            f"with torch.no_grad():\n    {change}\n{line}",
        )
    return line


@rule(2, "state")
def scalar_option(a):
    """An option that is a tensor."""
    h = a.pick()
    c = a.buffer("nn.Buffer(torch.tensor(0.3))")
    use = a.one(
        "F.leaky_relu({h}, {c})",
        "F.elu({h}, {c})",
        "torch.add({h}, {h}, alpha={c})",
        "{h}.clamp(min=-{c})",
        "F.hardtanh({h}, -{c}, {c})",
        "F.softplus({h}, {c})",
        "{h} * {c}",
        "{h} + {c}",
        "F.threshold({h}, {c}, 0.1)",
        "F.celu({h}, {c})",
        "F.softshrink({h}, {c})",
        "{h}.mul({c}).relu()",
        "torch.where({h} > {c}, {h}, {c} * 2)",
        "F.layer_norm({h}, {h}.shape[-1:], eps={c})",
        "F.rms_norm({h}, {h}.shape[-1:], eps={c})",
        "F.hardshrink({h}, {c})",
        "F.dropout({h}, {c}, True)",
        "F.pad({h}, (1, 1), value={c})",
        "F.batch_norm({h}, None, None, training=True, eps={c})",
        "{h}.masked_fill({h} > 0, {c})",
        "F.leaky_relu({h}, {c}.item())",
        "torch.sub({h}, {c})",
        "{h} ** {c}",
    )
    line = f"{a.new()} = {use.format(h=h, c=c)}"
    change = _change(a, c)
    return f"{line}\nwith torch.no_grad():\n    {change}" if a.chance(0.4) else line


@rule(1, "state")
def option_of_a_layer(a):
    h = a.pick()
    c = a.buffer("nn.Buffer(torch.tensor(0.3))")
    layer = a.layer(
        a.one(
            f"nn.LeakyReLU({c})",
            f"nn.ELU({c})",
            f"nn.Softplus({c})",
            f"nn.Hardtanh(-0.3, {c})",
            f"nn.Softshrink({c})",
            f"nn.Threshold({c}, 0.0)",
            f"nn.CELU({c})",
        )
    )
    _change(a, c)
    return f"{a.new()} = {layer}({h})"


@rule(3, "state")
def statistics(a):
    """A norm whose running statistics the model reads itself."""
    h = a.pick(lambda t: t.dim() in (2, 3, 4) and t.shape[0] > 1)
    t = a.value(h)
    n = "2d" if t.dim() == 4 else "1d"
    layer = a.layer(f"nn.BatchNorm{n}({t.shape[1]}{a.one('', ', momentum=0.5')})")
    shape = f".view(-1{', 1' * (t.dim() - 2)})"
    y, z = a.new(), a.new()
    use = a.one(
        "{h} - {m}",
        "({h} - {m}) * ({v} + 0.1).rsqrt()",
        "F.relu({h} - {m})",
        "({y} * {m}).tanh()",
        "torch.where({y} > {m}, {y}, {v})",
        "F.batch_norm({h}, {l}.running_mean, {l}.running_var)",
        "{y} - {m}",
        "({y} + {v}).sigmoid()",
    )
    use = use.format(
        h=h, y=y, l=layer, m=f"{layer}.running_mean{shape}", v=f"{layer}.running_var{shape}"
    )
    first, then = f"{y} = {layer}({h})", f"{z} = {use}"
    a.moved += [
        f"{layer}.running_mean.data.add_(0.5)",
        f"{layer}.running_mean.add_(0.5)",
        f"{layer}.reset_running_stats()",
        f"{layer}.eval()",
    ]
    again = a.one("", f"\n{layer}({y} * 2)", f"\n{a.new()} = {layer}({y} * 2)")
    return f"{first}\n{then}{again}" if y in use or a.chance(0.6) else f"{then}\n{first}{again}"


@rule(3, "state")
def container(a):
    """A list, an array, an index tensor, a dictionary that changes after it was used."""
    h = a.pick(lambda t: t.dim() >= 2 and t.shape[0] > 0 and t.shape[-1] >= 2)
    shape = a.value(h).shape
    n, width, dims = shape[0], shape[-1], len(shape)
    rows = [a.rng.randrange(n) for _ in range(2)]
    columns = list(range(width))
    swapped = [dims - 1, *range(1, dims - 1), 0]
    uses = [
        (f"{columns}", "{h}[..., {i}]", "{i}.reverse()"),
        (f"{columns}", "{h}.mT[..., {i}, :].mT", "{i}.reverse()"),
        (f"{rows}", "{h}[{i}]", "{i}.append(0)"),
        (f"{rows}", "{h}[{i}] * 2", "{i}[0] = 0"),
        (f"torch.tensor({columns})", "{h}[..., {i}]", "{i}.zero_()"),
        (f"torch.tensor({columns})", "{h}.index_select(-1, {i})", "{i}.data.zero_()"),
        (f"torch.tensor({columns})", "{h}.index_select(-1, {i})", "{i}.numpy()[:] = 0"),
        (f"np.array({columns})", "{h}[..., {i}]", "{i}[:] = 0"),
        (f"np.array({columns})", "{h}.mT[..., {i}, :]", "{i}[:] = {i}[::-1].copy()"),
        (f"np.array({rows})", "{h}[{i}]", "{i}[:] = 0"),
        (f"torch.arange({width}) % 2 == 0", "{h}[..., {i}]", "{i}.logical_not_()"),
        (f"torch.arange({width}) % 2 == 0", "torch.where({i}, {h}, {h} * 2)", "{i}.logical_not_()"),
        (f"torch.arange({width}) % 2 == 0", "{h}.masked_fill({i}, 0.5)", "{i}.data.logical_not_()"),
        (f"torch.arange({width}) % 2 == 0", "{h} * {i}", "{i}.numpy()[:] ^= True"),
        (f"{swapped}", "{h}.permute({i})", "{i}.sort()"),
        ("[1, 1]", "F.pad({h}, {i})", "{i}[0] = 0"),
        ("[1]", "F.pad({h}, {i} * 2)", "{i}[0] = 0"),
        ("[0]", "{h}.flip({i})", "{i}[0] = 1"),
        ("[1]", "torch.roll({h}, {i}, [0])", "{i}[0] = 0"),
        (f"[{width}]", "F.layer_norm({h}, {i})", "{i}[0] = 1"),
        ("[2] + [1] * " + str(dims - 1), "{h}.repeat({i})", "{i}[0] = 1"),
        ("{h}.shape[::-1]", "{h}.reshape({i})", "{i} = None"),
        (f"[{h}, {h}.tanh()]", "torch.cat({i}, -1)", "{i}.reverse()"),
        (f"[{h}, {h}.tanh()]", "torch.stack({i})", "{i}.clear()"),
        (f"[{h}, {h} * 2]", "torch.cat({i})", "{i}[0] = {i}[1] * 3"),
        ("{'alpha': 2}", "torch.add({h}, {h}, **{i})", "{i}['alpha'] = 3"),
        ("torch.tensor(1)", "{h}[..., {i}]", "{i}.zero_()"),
        ("torch.tensor(1)", "{h}[..., {i}:]", "{i}.zero_()"),
        ("slice(0, 1)", "{h}[{i}] * 2", "{i} = None"),
        ("np.float64(0.5)", "{h} * {i}", "{i} = None"),
        ("np.full(1, 0.5)", "{h} * {i}[0]", "{i}[:] = 2"),
        (f"np.ones({width})", "{h} * torch.from_numpy({i}).to({h}.dtype)", "{i}[:] = 2"),
        (f"np.ones({width})", "({h} + torch.from_numpy({i})).relu()", "{i}[:] = 2"),
        (f"np.ones({width})", "{h} - torch.as_tensor({i}, dtype={h}.dtype)", "{i}[:] = 2"),
    ]
    made, use, change = a.one(*uses)
    made = made.format(h=h)
    if a.chance(0.3) and h not in made and "= None" not in change:
        i = a.buffer(made)
        a.moved.append(change.format(i=i, h=h))
        line = f"{a.new()} = {use.format(h=h, i=i)}"
        if not a.chance(0.3):
            return line
        return f"{line}\n{change.format(i=i, h=h)}"
    i = a.new("i")
    after = a.one("", ".relu()", " * 2", ".tanh()")
    return f"{i} = {made}\n{a.new()} = ({use.format(h=h, i=i)}){after}\n{change.format(i=i, h=h)}"


@rule(2, "state")
def change_now(a):
    """Something outside of the graph changes in the middle of the forward pass."""
    return f"with torch.no_grad():\n    {a.one(*a.moved)}"


@rule(0.7, "state")
def remembered(a):
    """A tensor of one call that the next one uses."""
    if a.depth:
        return None
    h = a.pick()
    c = a.buffer(f"torch.zeros({tuple(a.value(h).shape)})")
    after = a.one("{h}.detach()", "{h}.detach().clone()", "{h}.detach() * 0.5", "{h}.data")
    return f"{a.new()} = {h} + {c}\n{c} = {after.format(h=h)}"


@rule(0.5, "state")
def parameter_changed(a):
    """A parameter that changes in the middle of the forward pass, past its version."""
    found = [
        f"{s.text.split(' = ')[0]}.weight"
        for s in a.program.layers
        if "Linear" in s.text or "Norm" in s.text
    ]
    p = a.one(*found)
    if a.depth:
        return f"{p}.data.mul_(0.9)"
    return a.one(
        f"{p}.data.mul_(0.9)",
        f"with torch.no_grad():\n    {p}.mul_(0.9)",
        f"{p}.data = {p}.data * 0.9",
    )


@rule(0.5, "state")
def noise(a):
    """Random numbers drawn by hand, changed afterwards."""
    h = a.pick()
    n = a.new("n")
    made = a.one(
        "torch.rand_like({h})",
        "torch.empty_like({h}).bernoulli_(0.5)",
        "torch.rand({h}.shape[-1:])",
        "torch.rand(())",
    )
    change = a.one(
        "{n}.mul_(2)", "{n}.data.mul_(2)", "{n}.numpy()[...] *= 2", "pass", "{n}.detach().zero_()"
    )
    return Statement(f"{n} = {made}.detach()\n{a.new()} = {h} * {n}\n{change}".format(h=h, n=n))
