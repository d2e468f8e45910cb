"""An explanation as text."""

from manualnn.autograd.activation import Activation
from manualnn.tools.explanations.formulas import formula, path_of, unstated
from manualnn.tools.ledgers.report import read
from manualnn.tools.table import aligned

# What torch's own ops compute that stand between layers.
TORCHS = {
    "Add": "y = x₁ + x₂;  dx₁ = dy;  dx₂ = dy",
    "Sub": "y = x₁ − x₂;  dx₁ = dy;  dx₂ = −dy",
    "Neg": "y = −x;  dx = −dy",
    "Mul": "y = x₁ ∗ x₂;  dx₁ = dy ∗ x₂;  dx₂ = dy ∗ x₁",
    "Div": "y = x₁ / x₂;  dx₁ = dy / x₂;  dx₂ = −dy ∗ y / x₂",
    "Cat": "y = (x₁, x₂, …) side by side;  dx₁, dx₂, … the parts of dy",
    "Mean": "y = Σ x / n;  dx = dy / n",
    "Sum": "y = Σ x;  dx = dy",
}

NOTATION = (
    "Examples are columns, as on the page: A[l] is (n[l], m); ∗ is element by element; dA, dZ are of each",
    "example's own loss, dW and db hold the mean over the examples, 1/m. In memory examples are rows.",
    "The page caches z[l]; saved is what is really in memory for backward, beside the parameters.",
)


def as_text(explanation):
    if explanation.layers is None:
        return "\n".join(
            [*_headline(explanation), "", *_ops(explanation), "", *_steps(explanation)]
        )
    parts = [*_headline(explanation), "", *_activations(explanation)]
    if explanation.m > 1:
        parts += [*NOTATION, ""]
    for layer in explanation.layers:
        parts += [*_layer(layer), ""]
    return "\n".join([*parts, *_total(explanation)])


def _headline(explanation):
    e = explanation
    mode = "training" if e.training else "evaluation"
    if e.sizes:
        shape = f"{' -> '.join(map(str, e.sizes))} units"
    else:
        given = " and ".join(map(str, e.given)) or "nothing"
        shape = f"{given} -> {', '.join(map(str, e.returned))}"
    examples = f"m = {e.m} example" + ("s" if e.m != 1 else "")
    return [
        f"{e.name}: {shape}, {examples}, {e.dtype}, {mode}",
        f"{e.parameters:,} parameters; matrix products of {flops(e.flops[0])} forward, "
        f"{flops(e.flops[1])} backward; {_saved(e)}",
    ]


def _saved(e):
    torchs = e.ledger.torch_total
    ratio = f", {e.saved / torchs:.2f} of torch.nn's" if torchs else ""
    return f"{read(e.saved)} saved for backward{ratio}"


def _activations(explanation):
    """Each g once, as it stands in its op."""
    known, parts = {}, []
    for layer in explanation.layers:
        if layer.g is not None:
            known.setdefault((layer.g.cls, tuple(layer.g.options.items())), []).append(layer)
    for layers in known.values():
        g = layers[0].g
        given = ", ".join(f"{k} = {v:g}" for k, v in g.options.items() if v is not None)
        where = (
            "" if len(known) == 1 else " in layer " + ", ".join(str(layer.l) for layer in layers)
        )
        parts.append(f"g is {g.name}{where}{', with ' + given if given else ''}: {path_of(g.cls)}")
        saved = "a" if g.from_output else "z"
        slope = f"g′ = {g.slope}" if g.elementwise else g.slope
        rows = [(f"a = {g.a}", f"code: {g.code}" if g.code not in (None, g.a) else "")]
        code = f"code, from {saved}: {g.slope_code}" if g.slope_code not in (None, g.slope) else ""
        rows.append((slope, code))
        parts += [*_two_columns(rows, 2), ""]
    return parts


def _two_columns(rows, indent, gap=3, widest=72):
    """Left and right; what is too wide for a column has its right below."""
    width = max((len(left) for left, right in rows if right and len(left) <= widest), default=0)
    lines = []
    for left, right in rows:
        if not right:
            lines.append(" " * indent + left)
        elif len(left) <= width:
            lines.append(" " * indent + left.ljust(width + gap) + right)
        else:
            lines += [" " * indent + left, " " * (indent + gap) + right]
    return lines


def _layer(layer):
    words = [f"layer {layer.l}: {layer.n_prev} -> {layer.n}"]
    if layer.g is not None:
        words.append(layer.g.name)
    if layer.dropout:
        words.append(f"{'alpha ' if layer.alpha else ''}dropout {layer.dropout:g}")
    lines = [", ".join(words) + (f"  ({layer.name})" if layer.name else "")]
    rows = [("forward", equation, note) for equation, note in layer.forward()]
    rows += [("backward", equation, note) for equation, note in layer.backward()]
    shapes = {}
    for name, shape in layer.matrices().items():
        shapes.setdefault(shape, []).append(name)
    rows += [("shapes", f"{shape}", ", ".join(names)) for shape, names in shapes.items()]
    rows += [("saved", *_words(tensor)) for tensor in layer.saved] or [("saved", "nothing", "")]
    products = layer.flops[1] // layer.flops[0] if layer.flops[0] else 0
    one = f"2 · {layer.n} · {layer.n_prev} · {layer.m}"
    back = f"{products} times that" if products == 2 else "the same" if products else "0"
    rows.append(("FLOPs", f"forward {one} = {layer.flops[0]:,}", f"backward {back}"))
    width = max(len(middle) for _, middle, right in rows if right)
    before = None
    for head, middle, right in rows:
        head, before = ("" if head == before else head), head
        lines.append(f"  {head:<9} {middle.ljust(width)}   {right}".rstrip())
    return lines


def _words(tensor):
    size = read(tensor.bytes) if tensor.bytes else "0 B"
    what = f"{tensor.what} " if tensor.what else ""
    return f"{what}{tensor.shape} {tensor.dtype}, {size}", tensor.why


def _total(explanation):
    rows = [("layer", "W", "parameters", "FLOPs forward", "backward", "saved")]
    for layer in explanation.layers:
        saved = sum(one.bytes for one in layer.saved)
        learned = layer.n * layer.n_prev + (layer.n if layer.b else 0)
        row = (str(layer.l), f"{(layer.n, layer.n_prev)}", f"{learned:,}")
        rows.append((*row, f"{layer.flops[0]:,}", f"{layer.flops[1]:,}", read(saved)))
    e = explanation
    forward, backward = (f"{count:,}" for count in e.flops)
    rows.append(("all", "", f"{e.parameters:,}", forward, backward, read(e.saved)))
    return [*aligned(rows, right=(2, 3, 4, 5))]


def _ops(explanation):
    """Each op once: its equations as its docstring states them."""
    counts = {}
    for step in explanation.steps:
        counts[step.op] = counts.get(step.op, 0) + 1
    lines = []
    for name, cls in explanation.ops().items():
        often = f"{counts[name]} times" if counts[name] > 1 else "once"
        if cls is None:
            lines.append(f"{name}, {often}: torch's own")
            lines.append(f"  {TORCHS.get(name, 'its formula is not written here')}")
            continue
        stated = formula(cls)
        lines.append(f"{name}, {often}: {path_of(cls)}")
        if not stated.forward:
            lines += [f"  {line}" for line in unstated(cls)]
        flow = ("dz = da ∗ g′(z)",) if issubclass(cls, Activation) else ()
        equations = (*stated.forward, *stated.backward, *flow, *stated.shapes)
        lines += [f"  {line}" for line in equations]
        if stated.caches:
            lines.append(f"  {stated.caches}")
    return lines


def _steps(explanation):
    rows = [("layer", "op", "in -> out", "parameters", "saved", "FLOPs forward", "backward")]
    for step in explanation.steps:
        given = " and ".join(by(shape) for shape in dict.fromkeys(step.shapes_in))
        own = {path.rpartition(".")[2]: shape for path, shape in step.parameters.items()}
        learned = ", ".join(f"{name} {by(shape)}" for name, shape in own.items())
        size = sum(one.bytes for one in step.saved)
        counts = (f"{count:,}" if count else "–" for count in step.flops)
        shape = f"{given} -> {by(step.shape)}"
        rows.append((step.layer, step.op, shape, learned, read(size) if size else "–", *counts))
    forward, backward = (f"{count:,}" for count in explanation.flops)
    rows.append(("all", "", "", "", read(explanation.saved), forward, backward))
    return [line[2:] for line in aligned(rows, right=(4, 5, 6))]


def by(shape):
    return "×".join(map(str, shape)) or "1"


def flops(count):
    for unit, base in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= base:
            return f"{count / base:.3g} {unit}FLOP"
    return f"{count} FLOP"
