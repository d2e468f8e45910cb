"""Rules for what stands around parts of a model: modes, hooks, checkpoints, transforms, autocast, threads."""

from fuzzing.author import rule
from fuzzing.program import Statement


@rule(1.5, "around")
def context(a):
    if a.depth > 1:
        return None
    header = a.one(
        "torch.no_grad()",
        "torch.autocast('cpu', torch.bfloat16)",
        "torch.autocast('cpu', torch.bfloat16)",
        "Seeing()",
        "Replacing()",
        "SeeingOps()",
        "ShiftingSums()",
        "numpy_hooks()",
        "copying_hooks()",
        "torch.autograd.graph.save_on_cpu()",
        "torch.autograd.set_detect_anomaly(True)",
        "contextlib.nullcontext()",
        "torch.set_grad_enabled(False)",
        "torch.autocast('cpu', enabled=False)",
        "torch.autocast('cpu', torch.float16)",
        "torch._C.DisableTorchFunction()",
        "torch._C.DisableTorchFunctionSubclass()",
    )
    body, _ = a.inside(a.rng.randrange(1, 4))
    return Statement(f"with {header}:", body=body) if body else None


@rule(0.15, "around")
def inference(a):
    body, _ = a.inside(1)
    return Statement("with torch.inference_mode():", body=body) if body else None


@rule(2, "around")
def function(a):
    """A part of the model as a function that somebody else calls."""
    if a.depth > 1:
        return None
    h = a.pick()
    f, o = a.new("f"), a.new()
    # Tangents detached: torch's gradients through the tangent of a layer norm are wrong (gradcheck).
    kinds = [
        "checkpoint({f}, {h}, use_reentrant=False)",
        "checkpoint({f}, {h}, use_reentrant=True)",
        "checkpoint({f}, {h}, use_reentrant=False)",
        "torch.func.grad(lambda t: {f}(t).sum())({h})",
        "torch.func.jvp({f}, ({h},), (torch.ones_like({h}),))[1].detach()",
        "torch.func.jvp({f}, ({h},), (torch.ones_like({h}),))[0]",
        "torch.func.vjp({f}, {h})[0]",
        "torch.func.vmap({f})({h})",
        "dual({f}, {h}).detach()",
        "in_a_thread({f}, {h})",
        "{f}({h})",
        "{f}({f}({h}))",
        "torch.func.linearize({f}, {h})[0]",
        "torch.utils.checkpoint.checkpoint_sequential([{f}, torch.tanh], 2, {h}, use_reentrant=False)",
    ]
    use = a.one(*kinds).format(f=f, h=h)
    if a.chance(0.02):
        use = f"compiled({f})({h})"
    body, result = a.function(a.rng.randrange(1, 4), [h])
    if not body:
        return None
    return Statement(f"def {f}({h}):", body=body, last=f"return {result}", after=f"{o} = {use}")


@rule(1, "around")
def own_function(a):
    h = a.pick()
    kind = a.one(
        "OwnInput.apply({h})",
        "OwnOutput.apply({h})",
        "OwnInPlace.apply({h})",
        "OwnInput.apply({h}) + {h}",
        "sum(OwnTwo.apply({h}))",
        "OwnTwo.apply({h})[1]",
    )
    if a.chance(0.3):
        return f"{h} += {a.one('OwnInput', 'OwnOutput')}.apply({h})"
    return f"{a.new()} = {kind.format(h=h)}"


@rule(1, "around")
def hook(a):
    h = a.pick(lambda t: t.requires_grad)
    node = f"{h}.grad_fn"
    line = a.one(
        f"{h}.register_hook(lambda g: g * 1.5)",
        f"{h}.register_hook(lambda g: None)",
        f"{h}.register_hook(lambda g: g.clamp(-1, 1))",
        f"{h}.retain_grad()",
        f"{node}.register_hook(lambda ins, outs: None)",
        f"{node}.register_prehook(lambda ds: tuple(None if d is None else d * 0.5 for d in ds))",
    )
    # torch crashes on a hook of a view whose base was written over, unless its node was asked for.
    return f"{node}\n{line}"


@rule(0.8, "around")
def hooked_layer(a):
    h = a.pick(lambda t: t.dim() >= 1)
    c = a.value(h).shape[-1]
    kind = a.one(
        f"nn.Linear({c}, {a.width()})",
        f"nn.LayerNorm({c})",
        "nn.ReLU()",
        "nn.SiLU(inplace=True)",
        "nn.Tanh()",
        f"Block({c})",
    )
    layer = a.layer(kind)
    hook = a.one(
        "register_forward_hook(lambda m, args, out: out * 1.5)",
        "register_forward_hook(lambda m, args, out: out.mul_(0.5))",
        "register_forward_pre_hook(lambda m, args: (args[0] + 0.25,))",
        "register_full_backward_hook(lambda m, d_in, d_out: (d_in[0] * 2,))",
        "register_full_backward_pre_hook(lambda m, d_out: (d_out[0] * 0.5,))",
        "register_forward_hook(lambda m, args, out: out.data.mul_(0.5))",
        "register_forward_pre_hook(lambda m, args: args[0].data.mul_(0.5) and None)",
    )
    hook = hook.replace(" and None", " if False else None")
    from_text = Statement(f"{layer}.{hook}")
    exec(from_text.text, a.names)
    a.program.layers.append(from_text)
    return f"{a.new()} = {layer}({h})"


@rule(0.6, "around")
def gradient_inside(a):
    """A gradient taken in the middle of the forward pass."""
    h, g = a.pick(lambda t: t.requires_grad), a.pick(lambda t: t.requires_grad)
    graph = a.one("create_graph=True", "retain_graph=True")
    return f"{a.new()} = torch.autograd.grad({h}.sum(), {g}, {graph})[0]"


@rule(0.15, "around")
def compiled_layer(a):
    h = a.pick(lambda t: t.dim() >= 1 and t.shape[-1] > 0)
    c = a.value(h).shape[-1]
    layer = a.layer(
        a.one(
            f"torch.compile(nn.Sequential(nn.Linear({c}, {c}), nn.ReLU()), backend='eager')",
            "torch.compile(lambda t: t.tanh() * 2 + 1, backend='eager')",
            f"torch.compile(nn.LayerNorm({c}), backend='eager')",
        )
    )
    return f"{a.new()} = {layer}({h})"


@rule(0.4, "around")
def parallel(a):
    h = a.pick()
    layers = [
        s.text.split(" = ")[0]
        for s in a.program.layers
        if "nn.Linear(" in s.text and " = nn.Linear" in s.text
    ]
    layer = a.one(*layers)
    return (
        f"{a.new()} = torch.func.functional_call({layer}, {{'weight': {layer}.weight * 2}}, ({h},))"
    )


@rule(0.5, "around")
def asking(a):
    """What only looks."""
    h = a.pick()
    return a.one(
        f"{h}.mean().item()",
        f"{h}.tolist()",
        f"repr({h})",
        f"{h}.detach().numpy().copy()",
        f"bool(({h} > 0).any())",
        f"{h}._version",
        f"{h}.data_ptr()",
        f"{h}.detach()",
        f"copy.deepcopy({h}.detach())",
    )
