"""Rules for calls of torch's functions: arithmetic, views, joins, indices, casts, products."""

from fuzzing.author import rule

NUMBERS = ("0.5", "-0.5", "1.5", "2", "0.1")


@rule(5, "call")
def functional(a):
    h = a.pick()
    call = a.one(
        "F.relu({h})",
        "torch.relu({h})",
        "{h}.relu()",
        "F.gelu({h})",
        "F.silu({h})",
        "torch.tanh({h})",
        "{h}.tanh()",
        "torch.sigmoid({h})",
        "{h}.sigmoid()",
        "F.softplus({h})",
        "F.elu({h}, 0.7)",
        "F.leaky_relu({h}, 0.2)",
        "F.hardtanh({h}, -0.5, 0.5)",
        "F.softmax({h}, dim=-1)",
        "{h}.softmax(0)",
        "F.log_softmax({h}, -1)",
        "F.dropout({h}, 0.25, self.training)",
        "F.hardswish({h})",
        "F.mish({h})",
        "F.selu({h})",
        "torch.selu({h})",
        "F.celu({h}, 1.2)",
        "F.softsign({h})",
        "F.tanhshrink({h})",
        "F.logsigmoid({h})",
        "F.threshold({h}, 0.1, -0.2)",
        "F.relu6({h} * 3)",
        "F.normalize({h}, dim=-1)",
        "F.hardshrink({h})",
        "F.softshrink({h})",
        "F.rrelu({h}, training=self.training)",
        "F.glu({h})",
        "F.prelu({h}, torch.tensor([0.3]))",
    )
    return f"{a.new()} = {call.format(h=h)}"


@rule(4, "call")
def normed(a):
    h = a.pick(lambda t: t.dim() >= 2)
    t = a.value(h)
    c = t.shape[-1]
    call = a.one(
        f"F.layer_norm({h}, ({c},))",
        f"F.layer_norm({h}, ({c},), eps=0.1)",
        f"F.rms_norm({h}, ({c},))",
        f"F.group_norm({h}, 2)",
        f"F.instance_norm({h})",
        f"F.batch_norm({h}, None, None, training=True)",
    )
    return f"{a.new()} = {call}"


@rule(3, "call")
def pointwise(a):
    h = a.pick()
    call = a.one(
        "{h}.exp()",
        "{h}.sin()",
        "torch.sin({h})",
        "{h}.abs()",
        "{h}.square()",
        "{h} ** 2",
        "torch.atan({h})",
        "{h}.clamp(-0.7, 0.7)",
        "{h}.clamp(min=0)",
        "(1 + {h}.square()).log()",
        "(1 + {h}.abs()).sqrt()",
        "(1 + {h}.square()).rsqrt()",
        "{h}.erf()",
        "-{h}",
        "{h}.neg()",
        "{h}.clone()",
        "{h}.contiguous()",
        "{h}.detach()",
        "{h}.cumsum(-1)",
        "{h}.nan_to_num()",
        "{h}.expm1()",
        "{h}.log1p()",
        "{h}.reciprocal()",
        "torch.zeros_like({h})",
        "torch.rand_like({h})",
        "torch.ones_like({h}) + {h}",
        "{h}.bernoulli(0.5)",
        "{h}.requires_grad_()",
        "{h}.relu().detach().requires_grad_()",
        "{h}.sign()",
        "{h}.sort(-1)[0]",
        "{h}.tril()",
        "{h}.floor()",
        "{h}.masked_fill({h} > 0.5, 0.25)",
        "{h}.topk(2, -1)[0]",
    )
    return f"{a.new()} = {call.format(h=h)}"


@rule(9, "call")
def arithmetic(a):
    h = a.pick()
    g = a.broad(h)
    number = a.one(*NUMBERS)
    call = a.one(
        "{h} + {g}",
        "{h} - {g}",
        "{h} * {g}",
        "{h} / (1 + {g}.square())",
        "torch.add({h}, {g})",
        "torch.sub({h}, {g}, alpha=0.5)",
        "torch.mul({h}, {g})",
        "{h}.add({g}, alpha=2)",
        "{g} - {h}",
        "torch.add({h}, other={g})",
        "{h} + {n}",
        "{h} * {n}",
        "{n} - {h}",
        "{n} * {h}",
        "{h} / 2",
        "torch.div({h}, {n})",
        "{h}.mul({g}.sigmoid())",
        "{g} + {h}",
        "torch.rsub({h}, {g})",
        "torch.where({h} > 0, {h}, {g})",
        "torch.where({g} > 0.1, {h}, {n})",
        "torch.maximum({h}, {g})",
        "torch.lerp({h}, {g}.expand_as({h}), 0.3)",
        "torch.addcmul({h}, {g}, {g}, value=0.5)",
        "{h} + {h}",
        "torch.where({h} > {g}, {g}, {h})",
        "{h}.mul({n}).add({g})",
        "{h} * {g}.detach()",
        "{h} - {h}.mean()",
    )
    return f"{a.new()} = {call.format(h=h, g=g, n=number)}"


@rule(2, "call")
def reduction(a):
    h = a.pick(lambda t: t.dim() >= 1)
    dim = a.rng.randrange(-1, a.value(h).dim())
    keep = a.one("True", "True", "False")
    call = a.one("mean", "sum", "amax", "std", "logsumexp", "var", "prod", "norm(dim")
    if call == "norm(dim":
        return f"{a.new()} = {h}.norm(dim={dim}, keepdim={keep})"
    return f"{a.new()} = {h}.{call}({dim}, keepdim={keep})"


@rule(6, "call")
def view(a):
    h = a.pick()
    shape = a.value(h).shape
    n = len(shape)
    i, j = (a.rng.randrange(n), a.rng.randrange(n)) if n else (0, 0)
    order = list(range(n))
    a.rng.shuffle(order)
    options = [
        f"{h}.unsqueeze({a.rng.randrange(n + 1)})",
        f"{h}.squeeze()",
        f"{h}.reshape(-1)",
        f"{h}.flatten()",
        f"{h}[None]",
        f"{h}[..., None]",
        f"{h}.view({h}.shape)",
        f"{h}.view_as({h})",
        f"{h}.expand(2, *{h}.shape)",
        f"{h}.alias()" if False else f"{h}.ravel()",
    ]
    if n:
        options += [
            f"{h}.transpose({i}, {j})",
            f"{h}.movedim({i}, {j})",
            f"{h}.permute({', '.join(map(str, order))})",
            f"{h}.permute({order})",
            f"{h}.narrow({i}, 0, {max(1, shape[i] // 2)})",
            f"{h}.chunk(2, {i})[{a.one(0, -1)}]",
            f"{h}.split({max(1, shape[i] // 2)}, {i})[0]",
            f"{h}.select({i}, 0)",
            f"{h}[:2]",
            f"{h}[..., 1:]",
            f"{h}[..., ::2]",
            f"{h}[0]",
            f"{h}[-1]",
            f"{h}.unbind({i})[0]",
            f"{h}.unfold({i}, 2, 1)",
            f"{h}.mT",
            f"{h}.t()",
            f"{h}.T",
            f"{h}.diagonal()",
            f"{h}.flatten(1)",
            f"{h}.reshape(-1, {shape[-1]})",
            f"{h}.reshape({shape[0]}, -1)",
            f"{h}.unflatten(-1, (2, -1))",
            f"torch.transpose({h}, {i}, {j}).contiguous()",
            f"{h}.transpose({i}, {j}).reshape(-1)",
            f"{h}.swapaxes({i}, {j})",
        ]
        if shape[i] == 1:
            options += [
                f"{h}.squeeze({i})",
                f"{h}.expand({', '.join('3' if k == i else '-1' for k in range(n))})",
            ]
    return f"{a.new()} = {a.one(*options)}"


@rule(1, "call")
def unpacked_views(a):
    """Two views at once."""
    h = a.pick(lambda t: t.dim() >= 1 and t.shape[-1] >= 2)
    return f"{a.new()}, {a.new()} = {h}.{a.one('chunk(2, -1)', 'tensor_split(2, -1)')}"


@rule(4, "call")
def joined(a):
    h = a.pick(lambda t: t.dim() >= 1)
    g = a.alike(h)
    dim = a.rng.randrange(-1, a.value(h).dim())
    call = a.one(
        "torch.cat([{h}, {g}], {d})",
        "torch.cat(({h}, {g}, {h}), dim={d})",
        "torch.stack([{h}, {g}], {d})",
        "torch.concat([{h}, {g}], {d})",
        "torch.cat([{h}, {h}.relu()], {d})",
        "torch.hstack([{h}, {g}])",
        "torch.cat([{h} * 2, {g}], {d})",
        "torch.cat([{h}], {d})",
        "torch.vstack(({h}, {g}))",
        "torch.cat([{h}, torch.ones_like({g})], {d})",
    )
    return f"{a.new()} = {call.format(h=h, g=g, d=dim)}"


@rule(3, "call")
def copies(a):
    h = a.pick(lambda t: t.dim() >= 1)
    n = a.value(h).dim()
    dim = a.rng.randrange(n)
    call = a.one(
        f"torch.roll({h}, 1, {dim})",
        f"{h}.roll(-1, {dim})",
        f"{h}.flip({dim})",
        f"torch.flip({h}, [{dim}])",
        f"F.pad({h}, (1, 1))",
        f"F.pad({h}, [1, 0], value=0.5)",
        f"{h}.repeat({', '.join(['2'] + ['1'] * (n - 1))})",
        f"{h}.repeat_interleave(2, {dim})",
        f"F.pad({h}, (1, 0), mode='replicate')",
        f"{h}.tile(2)",
        f"{h}.index_select({dim}, torch.tensor([0, 0]))",
        f"{h}.gather({dim}, {h}.detach().argsort({dim}))",
        f"{h}.take_along_dim({h}.detach().argsort({dim}), {dim})",
        f"{h}.rot90()",
        f"{h}.expand_as({h}).clone()",
        f"F.interpolate({h}, scale_factor=2)",
        f"{h}.to(memory_format=torch.channels_last)",
        f"{h}.contiguous(memory_format=torch.channels_last)",
    )
    return f"{a.new()} = {call}"


@rule(3, "call")
def indexed(a):
    h = a.pick(lambda t: t.dim() >= 1 and t.shape[0] > 0)
    n = a.value(h).shape[0]
    index = [a.rng.randrange(n) for _ in range(a.rng.choice((1, 2, 3)))]
    call = a.one(
        "{h}[{i}]",
        "{h}[torch.tensor({i})]",
        "{h}[np.array({i})]",
        "{h}[:, {j}]",
        "{h}[{h}.detach().argsort(0)[:, 0]]",
        "{h}.t()[{j}].t()",
        "{h}[..., {j}]",
        "{h}[{h}.detach() > 0]",
        "{h}[torch.tensor({i}), 0]",
        "{h}[({i}, {i})]",
        "{h}[{h}.detach().sum(-1) > 0]",
    )
    return f"{a.new()} = {call.format(h=h, i=index, j=[i % 2 for i in index])}"


@rule(2, "call")
def cast(a):
    h = a.pick()
    call = a.one(
        "{h}.float().double()",
        "{h}.to(torch.float32)",
        "{h}.double()",
        "{h}.bfloat16().to({h}.dtype)",
        "{h}.to(torch.get_default_dtype())",
        "{h}.float()",
        "{h}.type(torch.float64)",
        "{h}.half().float()",
        "{h}.to({h}.dtype, copy=True)",
        "torch.complex({h}, {h}).real",
        "torch.view_as_real(torch.complex({h}, {h} * 2)).sum(-1)",
    )
    return f"{a.new()} = {call.format(h=h)}"


@rule(4, "call")
def product(a):
    h = a.pick(lambda t: t.dim() >= 1)
    g = a.pick(lambda t: t.dim() >= 1)
    call = a.one(
        "{h} @ {h}.mT",
        "torch.matmul({h}, {g})",
        "{h} @ {g}",
        "{h}.mT @ {g}",
        "{h}.matmul({g}.mT)",
        "torch.bmm({h}, {h}.transpose(1, 2))",
        "torch.einsum('...i,...i->...', {h}, {h})",
        "torch.outer({h}, {h})",
        "F.scaled_dot_product_attention({h}, {h}, {h})",
        "F.scaled_dot_product_attention({h}, {h}, {h}, is_causal=True)",
        "torch.mm({h}, {g}.t())",
        "({h} @ {h}.mT).softmax(-1) @ {h}",
        "torch.baddbmm({h} @ {h}.mT, {h}, {h}.mT)",
        "torch.nn.functional.linear({h}, {g})",
        "F.bilinear({h}, {h}, torch.ones(2, {h}.shape[-1], {h}.shape[-1]))",
        "F.conv1d({h}, torch.ones(2, {h}.shape[1], 1))",
        "F.cosine_similarity({h}, {g}, -1)",
    )
    return f"{a.new()} = {call.format(h=h, g=g)} * 0.5"


@rule(1, "call")
def loss(a):
    h = a.pick()
    g = a.alike(h)
    kind = a.one(
        "mse_loss",
        "smooth_l1_loss",
        "l1_loss",
        "huber_loss",
        "binary_cross_entropy_with_logits",
        "kl_div",
    )
    target = a.one(g, f"{g}.detach()", f"torch.rand_like({h})")
    call = f"F.{kind}({h}, {target}, reduction={a.one('none', 'mean', 'sum')!r})"
    if a.chance(0.2):
        call = f"F.cross_entropy({h}, {h}.detach().argmax(-1) * 0, reduction='none')"
    return f"{a.new()} = {call}"


@rule(2, "call")
def parameter_of_its_own(a):
    """A parameter that is added, multiplied, broadcast."""
    h = a.pick(lambda t: t.dim() >= 1)
    shape = tuple(a.value(h).shape)
    shape = a.one(shape, shape[-1:], (1,) * (len(shape) - 1) + shape[-1:], ())
    p = a.layer(f"nn.Parameter(torch.randn({shape}))")
    call = a.one(
        "{h} + {p}",
        "{h} * {p}",
        "{h} - {p}",
        "{p} * {h}",
        "torch.where({h} > 0, {h}, {p})",
        "{h} * {p}.sigmoid()",
        "torch.addcmul({h}, {h}, {p})",
        "torch.cat([{h}, {p}.expand_as({h})])",
        "F.layer_norm({h}, {h}.shape[-1:], {p}, {p})",
        "F.linear({h}, {p})",
        "F.prelu({h}, {p}.abs())",
    )
    return f"{a.new()} = {call.format(h=h, p=p)}"
