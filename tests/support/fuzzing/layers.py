"""Rules for layers of torch.nn, and for layers used a second time."""

from fuzzing.author import rule

ACTIVATIONS = """
    ReLU() ReLU(inplace=True) ReLU6() ReLU6(inplace=True) LeakyReLU(0.1) LeakyReLU(0.2,inplace=True) PReLU()
    ELU() ELU(inplace=True) CELU(1.3) SELU() SELU(inplace=True) GELU() GELU("tanh") SiLU() SiLU(inplace=True)
    Mish() Mish(inplace=True) Sigmoid() LogSigmoid() Tanh() Hardtanh() Hardtanh(-0.5,0.5,inplace=True)
    Hardsigmoid() Hardswish() Hardswish(inplace=True) Hardshrink() Softshrink() Tanhshrink() Softplus()
    Softsign() Threshold(0.1,-0.3) Threshold(0.1,0.0,inplace=True) Softmax(-1) LogSoftmax(-1) Softmin(-1)
    RReLU() RReLU(inplace=True) Identity() Dropout(0.3) Dropout(0.3,inplace=True) AlphaDropout(0.2)
    FeatureAlphaDropout(0.2) GLU(-1) Flatten() Flatten(0)
""".split()


@rule(6, "layer")
def linear(a):
    h = a.pick(lambda t: t.dim() >= 1 and t.shape[-1] > 0)
    bias = a.one("", "", ", bias=False")
    layer = a.layer(f"nn.Linear({a.value(h).shape[-1]}, {a.width()}{bias})")
    return f"{a.new()} = {layer}({h})"


@rule(4, "layer")
def convolution(a):
    d = a.one(1, 2, 2)
    h = a.pick(lambda t: t.dim() in (d + 1, d + 2))
    t = a.value(h)
    channels = t.shape[-1 - d]
    out, k = a.width(), a.one(1, 2, 3)
    options = a.one("", ", padding=1", ", stride=2, padding=1", ", bias=False", ", padding='same'")
    if a.chance(0.2):
        out, options = channels, options + f", groups={channels}"
    kind = "ConvTranspose" if a.chance(0.15) else "Conv"
    return f"{a.new()} = {a.layer(f'nn.{kind}{d}d({channels}, {out}, {k}{options})')}({h})"


@rule(6, "layer")
def activation(a):
    h = a.pick()
    return f"{a.new()} = {a.layer('nn.' + a.one(*ACTIVATIONS))}({h})"


@rule(5, "layer")
def norm(a):
    h = a.pick(lambda t: t.dim() >= 1)
    t = a.value(h)
    n = t.dim()
    kinds = [f"LayerNorm({t.shape[-1]})", f"RMSNorm({t.shape[-1]})"]
    if n >= 2:
        kinds.append(f"LayerNorm(({t.shape[-2]}, {t.shape[-1]}), elementwise_affine=False)")
        kinds += [f"GroupNorm({g}, {t.shape[1]})" for g in (1, 2)]
        options = a.one(
            "",
            "",
            ", momentum=0.5",
            ", affine=False",
            ", track_running_stats=False",
            ", momentum=None",
        )
        c = t.shape[1]
        batch = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d"}.get(n)
        if batch:
            kinds += [f"{batch}({c}{options})"] * 4
        instance = {2: "InstanceNorm1d", 3: "InstanceNorm1d", 4: "InstanceNorm2d"}[min(n, 4)]
        inputs = t.shape[0] if n == 2 else t.shape[1]
        affine = a.one("", ", affine=True", ", affine=True, track_running_stats=True")
        kinds.append(f"{instance}({inputs}{affine})")
    if a.chance(0.2):
        kinds = [k for k in kinds if "Layer" in k or "RMS" in k]
    return f"{a.new()} = {a.layer('nn.' + a.one(*kinds))}({h})"


@rule(2, "layer")
def pool(a):
    h = a.pick(lambda t: t.dim() in (2, 3, 4))
    d = a.one(1, 2) if a.value(h).dim() == 3 else (1 if a.value(h).dim() == 2 else 2)
    kind = a.one(
        f"MaxPool{d}d(2)",
        f"MaxPool{d}d(3, 1, 1)",
        f"AvgPool{d}d(2)",
        f"AvgPool{d}d(3, 1, 1, count_include_pad=False)",
        f"AdaptiveAvgPool{d}d(2)",
        f"AdaptiveMaxPool{d}d(1)",
        f"AdaptiveAvgPool{d}d(1)",
    )
    return f"{a.new()} = {a.layer('nn.' + kind)}({h})"


@rule(1.5, "layer")
def attention(a):
    h = a.pick(lambda t: t.dim() in (2, 3) and t.shape[-1] % 2 == 0 and t.numel() > 0)
    e = a.value(h).shape[-1]
    options = a.one("", ", batch_first=True", ", bias=False", ", dropout=0.2")
    weights = a.one("", ", need_weights=False")
    layer = a.layer(f"nn.MultiheadAttention({e}, 2{options})")
    return f"{a.new()} = {layer}({h}, {h}, {h}{weights})[0]"


@rule(1, "layer")
def embedding(a):
    h = a.pick(lambda t: t.dim() in (1, 2))
    ids = a.one(f"({h}.detach().abs() * 3).long().clamp(max=4)", f"{h}.detach().argsort(-1) % 5")
    options = a.one("", ", padding_idx=1", ", max_norm=1.0")
    return f"{a.new()} = {a.layer(f'nn.Embedding(5, {a.width()}{options})')}({ids})"


@rule(1, "layer")
def sequential(a):
    h = a.pick(lambda t: t.dim() >= 1)
    c, w = a.value(h).shape[-1], a.width()
    act = "nn." + a.one(*ACTIVATIONS[:30])
    layer = a.layer(f"nn.Sequential(nn.Linear({c}, {w}), {act}, nn.Linear({w}, {c}))")
    return f"{a.new()} = {layer}({h})"


@rule(1, "layer")
def block(a):
    if a.chance(0.5):
        h = a.pick(lambda t: t.dim() >= 1 and t.shape[-1] > 0)
        return f"{a.new()} = {a.layer(f'Block({a.value(h).shape[-1]})')}({h})"
    h = a.pick(lambda t: t.dim() == 4)
    return f"{a.new()} = {a.layer(f'Picture({a.value(h).shape[1]})')}({h})"


@rule(0.7, "layer")
def parametrized(a):
    h = a.pick(lambda t: t.dim() >= 1 and t.shape[-1] > 0)
    kind = a.one("parametrizations.weight_norm", "parametrizations.spectral_norm", "weight_norm")
    return f"{a.new()} = {a.layer(f'nn.utils.{kind}(nn.Linear({a.value(h).shape[-1]}, {a.width()}))')}({h})"


@rule(3, "layer")
def shared(a):
    """A layer that has been used before."""
    layers = [s.text.split(" = ")[0] for s in a.program.layers if " = nn." in s.text]
    return f"{a.new()} = {a.one(*[n for n in layers if n.startswith('self.l')])}({a.pick()})"


@rule(1, "layer")
def changed_options(a):
    """An option of a layer that changes between its uses."""
    changes = {
        "negative_slope": "0.3",
        "eps": "0.1",
        "p": "0.5",
        "alpha": "0.7",
        "beta": "2.0",
        "momentum": "0.9",
        "lambd": "0.2",
        "inplace": "True",
        "max_val": "0.25",
        "value": "-0.1",
        "threshold": "0.0",
    }
    found = []
    for s in a.program.layers:
        name = s.text.split(" = ")[0]
        layer = getattr(a.model, name[5:], None)
        found += [f"{name}.{key} = {v}" for key, v in changes.items() if key in vars(layer)]
    return a.one(*found)
