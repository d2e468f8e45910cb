"""Runs a program with the model as torch has it, and converted; compares all that was seen."""

import copy
import inspect
import random
import re
import warnings
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F

from fuzzing.generate import default_dtype
from fuzzing.helpers import NAMES, SHORT, seeded
from manualnn import convert

# Channels that no version counter shows: only there may a converted model refuse what torch runs.
UNSEEN = re.compile(
    r"\.data\b|numpy|np\.asarray|dlpack|gathered|storage|unversioned|DisableTorchFunction|descend_by_data|inference_mode|torch\.tensor\(0\.0\)\.set_"
)
WRITES = re.compile(r"(?m)_\(|^h\d+ .?[+*/-]=|^h\d+\[.*=|out=|inplace|InPlace")
# Where the copies are not made (hooks are a thread's own), or torch saves what it has computed, ours the input.
HIDDEN = re.compile(
    r"in_a_thread|RMSNorm|rms_norm|LogSigmoid|logsigmoid|Tanhshrink|tanhshrink|matmul| @ |attention"
    r"|[Ii]nstance_?[Nn]orm"
)
# Refused where torch runs: their input is overwritten in place, of which torch keeps a copy (docs/limits.md).
REFUSED = re.compile(r"RMSNorm|rms_norm|InstanceNorm|instance_norm|anhshrink|matmul| @ |attention")
# Where a second derivative is not defined, or not PyTorch's to have; the first must be right there, too. Of a
# compiled part (what a Function has saved counts as constant); where a checkpoint runs the layer again with an
# option that has changed; of what needs a gradient only after the op, or no longer; of a norm, whose input was
# written to, or whose node has a hook: ours gives out its statistics, too, and the hook sees their gradients.
NO_SECOND = re.compile(
    r"compile|(?:Norm|_norm)[\s\S]*grad_fn\.register|"
    r"detach_\(\)|\.eps = [\s\S]*checkpoint\(|h\d+\.requires_grad_\(\)|(?:Norm|_norm)[\s\S]*(?:"
    + UNSEEN.pattern
    + ")"
)
# torch's Linear gives out a view: what is hooked there is lost where it is written over (docs/bits.md).
HOOK_ON_A_VIEW = re.compile(
    r"Linear[\s\S]*register_(?:pre)?hook[\s\S]*(?:"
    + WRITES.pattern.replace("(?m)", "").replace("^", r"\n *")
    + ")"
)
RRELU = re.compile(r"(?i)rrelu[\s\S]*checkpoint\(")
AUTOCAST_IN_VMAP = re.compile(r"autocast[\s\S]*vmap\(")
# Elements that share their memory: nobody promises an order of writes to them.
OVERLAPS = re.compile(r"(\.unfold\([^()]*\))(?!\.clone)")
# Refused where torch runs, by words and where they may be said; docs/limits.md names each.
NAMED = (
    ("version_counter for inference tensor", re.compile(r"\.data = [\s\S]*inference_mode")),
    ("nference tensors cannot be saved", re.compile(r"\.data = [\s\S]*inference_mode")),
    ("different number of tensors", re.compile(r"checkpoint\([\s\S]*requires_grad_\(")),
    ("already unpacked once", re.compile(r"checkpoint[\s\S]*second\(")),
    ("must implement the jvp function", re.compile(r"dual\([\s\S]*compiled\(")),
    ("more than one element of the written-to tensor", re.compile(r"(?i)threshold")),
)
DERIVATIVES = re.compile(r"create_graph|jvp|vjp|dual|func\.grad|linearize")
# Undefined: what torch has saved was written to unseen, so that its own number is wrong; and ours reads it at
# other places. Or what NO_SECOND says.
OK = "ok"
ROUNDED = "rounded"
WRONG = "wrong"
RAISES = "raises"
CRASHES = "crashes"
BOTH_CRASH = "crashes without us"
VERIFIED = "verified"
REFUSES = "refused as docs/limits.md says"
BOTH_RAISE = "both raise"
RUNS = "ours runs where torch raises"
RIGHT = "right where torch is not"
UNDEFINED = "undefined"
FAILURES = (WRONG, RAISES, CRASHES)


@dataclass
class Verdict:
    kind: str
    text: str = ""
    off: float = float("inf")

    def key(self):
        """The same for the same kind of failure."""
        return self.kind, re.sub(r"[\d.]+", "", self.text)[:60] if self.kind == RAISES else ""


class Seen(list):
    """What a script has seen, as it was then."""

    def append(self, value):
        super().append(_as_it_is(value))


def _as_it_is(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return [_as_it_is(v) for v in value] if isinstance(value, (list, tuple)) else value


@dataclass
class Run:
    seen: Seen
    error: Exception | None


def module_of(program):
    names = dict(SHORT) | NAMES | {"__name__": "fuzzing.program"}
    exec(compile(program.source(), "<program>", "exec"), names)
    return names


def model_of(names):
    """The same model each time."""
    seeded(0)
    return names["Net"]()


def run(names, model):
    """What the script sees, then the model's gradients and buffers."""
    seen, error = Seen(), None
    seeded(0)
    try:
        names["script"](model, seen)
        seen.append([p.grad for p in model.parameters()])
        seen.append(list(model.buffers()))
    except Exception as e:
        error = e.with_traceback(None)
    return Run(seen, error)


def judge(program, expected=None):
    """The verdict on a program. expected: torch's run, where it is at hand."""
    with warnings.catch_warnings(), default_dtype(program.dtype):
        warnings.simplefilter("ignore")
        names = module_of(program)
        try:
            expected = expected or run(names, model_of(names))
            ours = model_of(names)
        except Exception as e:
            return Verdict(BOTH_RAISE, _said(e))
        found = run(names, convert(ours, keep=program.keep))
        verdict = compare(program, found, expected)
        if verdict.kind == WRONG:
            # What norms save of the running statistics; the same within torch.func; everything.
            oracles = as_saved(names, 1), with_its_statistics(names), with_composed_norms(names)
            for oracle in (*oracles, as_saved(names, 9)):
                if compare(program, found, oracle).kind in (OK, ROUNDED):
                    return Verdict(RIGHT, verdict.text)
            unseen = UNSEEN.search(program.source())
            if compare(program, expected, oracle).kind == WRONG or (
                unseen and HIDDEN.search(program.source())
            ):
                return Verdict(UNDEFINED, verdict.text)
            if re.search(r"(?i)rrelu[\s\S]*numpy_hooks", program.source()):
                return Verdict(
                    UNDEFINED, f"torch saves the noise before it is drawn: {verdict.text}"
                )
            if RRELU.search(program.source()) and _is_right_to_its_end(program):
                return Verdict(UNDEFINED, f"noise that a checkpoint has not drawn: {verdict.text}")
            if _is_right_apart(program):
                return Verdict(UNDEFINED, f"memory that overlaps: {verdict.text}")
            if _is_unseen_by_checkpoint(program):
                return Verdict(UNDEFINED, f"a checkpoint sees no versions: {verdict.text}")
            if "checkpoint" in program.source() and not _differ_but_for_buffers(
                program, found, expected
            ):
                return Verdict(UNDEFINED, "how often a checkpoint's recomputation moves statistics")
            if AUTOCAST_IN_VMAP.search(program.source()) and _is_right_without_autocast(program):
                return Verdict(UNDEFINED, f"autocast inside vmap: {verdict.text}")
            if HOOK_ON_A_VIEW.search(program.source()) and _is_right_with(
                program, lambda text: re.sub(r".*register_(?:pre)?hook.*", "pass", text)
            ):
                return Verdict(UNDEFINED, f"a hook on a Linear's output: {verdict.text}")
            if "compile" in program.source() and _is_right_with(
                program, lambda text: re.sub(r".*(?:descend|\.data\b).*", "pass", text), "events"
            ):
                return Verdict(UNDEFINED, f"backend eager sees no versions: {verdict.text}")
            if NO_SECOND.search(program.source()) and _is_right_once(program):
                return Verdict(UNDEFINED, f"in second derivatives alone: {verdict.text}")
            moved = compare(program, shaken(names), expected)
            if moved.kind in (WRONG, ROUNDED) and verdict.off <= 100 * moved.off:
                return Verdict(ROUNDED, f"ill-conditioned: {verdict.text}")
    most = (
        (2.0 if "second(" in program.source() else 0.2) if "float16" in program.source() else 0.05
    )
    if verdict.kind == WRONG and program.dtype == "float32":
        exact = copy.deepcopy(program)
        exact.dtype = "float64"
        exactly = judge(exact).kind
        if exactly == RIGHT:  # what says so is rounded too much in float32
            return Verdict(RIGHT, verdict.text)
        if exactly in (OK, ROUNDED) and verdict.off < most:  # an ill-conditioned one
            return Verdict(ROUNDED, verdict.text)
    return verdict


def _is_right_once(program):
    """Whether it is right with first derivatives in place of second ones."""
    once = copy.deepcopy(program)
    for event in once.events:
        event.text = event.text.replace("second(", "grads(")
    return once.source() != program.source() and judge(once).kind not in FAILURES


def _is_right_without_autocast(program):
    """Whether it is right without autocast, which casts for fewer functions of torch in vmap (bits.md)."""
    return _is_right_with(
        program,
        lambda text: re.sub(r"(autocast\('cpu', torch.b?float16)", r"\1, enabled=False", text),
    )


def _is_right_to_its_end(program):
    """Whether it is right where a recomputation does not stop before the last op has run (docs/limits.md)."""
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        names = module_of(program)
        expected = run(names, model_of(names))
        found = run(names, convert(model_of(names), keep=program.keep))
    return compare(program, found, expected).kind in (OK, ROUNDED)


def _is_right_apart(program):
    """Whether it is right with copies in place of elements that overlap."""
    return _is_right_with(program, lambda text: OVERLAPS.sub(r"\1.clone()", text))


def _is_right_with(program, change, part="body"):
    """Whether it is right with other lines in the model's forward, or in another part."""
    changed = copy.deepcopy(program)
    within = list(getattr(changed, part))
    while within:
        statement = within.pop()
        statement.text = change(statement.text)
        within += statement.body or ()
    return changed.source() != program.source() and judge(changed).kind not in FAILURES


def _is_unseen_by_checkpoint(program):
    """Whether torch refuses it without the checkpoint, which looks at no version."""
    if "checkpoint" not in program.source():
        return False
    there, names = torch.utils.checkpoint, module_of(program)

    def called(function, *inputs, **_):
        return function(*inputs)

    def called_in_turn(functions, segments, x, **_):
        for function in functions:
            x = function(x)
        return x

    with (
        mock.patch.object(there, "checkpoint", called),
        mock.patch.object(there, "checkpoint_sequential", called_in_turn),
    ):
        names["checkpoint"] = called
        return "inplace operation" in str(run(names, model_of(names)).error)


def _differ_but_for_buffers(program, found, expected):
    return differences(program, found.seen[:-1], expected.seen[:-1]).kind == WRONG


class _CopiesStatistics(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.batch_norm:
            given = inspect.signature(func).bind(*args, **kwargs).arguments
            if not given.get("training"):
                for name in ("running_mean", "running_var"):
                    given[name] = given[name].clone()
            args, kwargs = (), given
        return func(*args, **kwargs)


def with_its_statistics(names):
    """torch's run in which a norm by running statistics keeps them as they are then, also within torch.func."""
    with _in_this_thread(names), _CopiesStatistics():
        return run(names, model_of(names))


def with_composed_norms(names):
    """torch's run with norms of elementary operations: third derivatives of its own are wrong.

    They count the statistics that they have saved as constant.
    """

    def composed(x, weight, bias, eps, dims, channels):
        mu = x.mean(dims, keepdim=True)
        y = (x - mu) / ((x - mu).square().mean(dims, keepdim=True) + eps).sqrt()
        shape = [1, -1, *(1 for _ in x.shape[2:])] if channels else x.shape[min(dims) :]
        y = y if weight is None else y * weight.view(shape)
        return y if bias is None else y + bias.view(shape)

    def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
        return composed(x, weight, bias, eps, tuple(range(-len(shape), 0)), False)

    def group_norm(x, groups, weight=None, bias=None, eps=1e-5):
        rows = composed(x.reshape(len(x), groups, -1), None, None, eps, (2,), True).view(x.shape)
        shape = [1, -1, *(1 for _ in x.shape[2:])]
        rows = rows if weight is None else rows * weight.view(shape)
        return rows if bias is None else rows + bias.view(shape)

    norm = F.batch_norm

    def batch_norm(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if not training:
            return norm(x, mean, var, weight, bias, training, momentum, eps)
        norm(x.detach(), mean, var, None, None, True, momentum, eps)
        return composed(x, weight, bias, eps, (0, *range(2, x.dim())), True)

    made = {"layer_norm": layer_norm, "group_norm": group_norm, "batch_norm": batch_norm}
    with mock.patch.multiple(F, **made):
        return run(names, model_of(names))


def _in_this_thread(names):
    """Threads have no hooks and modes of others; what is asked here is not about them."""
    return mock.patch.dict(names, in_a_thread=lambda function, *args: function(*args))


def as_saved(names, dims):
    """torch's run, with copies of what is saved: what would be right if torch could see every write.

    dims: of tensors of so many dimensions at most.
    """

    def copied(t):
        return t.detach().clone() if t.dim() <= dims else t

    hooks = torch.autograd.graph.saved_tensors_hooks(copied, lambda t: t)
    with _in_this_thread(names), hooks:
        return run(names, model_of(names))


def shaken(names):
    """torch's run with inputs, inputs of norms, and tangents of functions in it, that differ by roundings: what
    changes then as much is no difference. A tangent may be 0 for torch, a rounding for others; the mean of
    constants is off by a rounding, by which a norm divides."""
    generator, jvp = torch.Generator().manual_seed(0), torch.func.jvp

    def noise(x):
        drawn = torch.empty(x.shape, dtype=x.dtype).normal_(generator=generator)
        return 4 * torch.finfo(x.dtype).eps * drawn

    def shake(module, inputs):
        x = inputs[0]
        with torch._C.DisableTorchFunction():
            x.data.mul_(1 + noise(x))

    def shaken_jvp(function, primals, tangents, **kwargs):
        # Along constants the tangent of a norm is 0, or a rounding that its small variances have made large.
        given = tuple(t * (1 + noise(t)) for t in tangents)
        output, tangent = jvp(function, primals, given, **kwargs)
        return output, tangent + noise(tangent)

    def shaken_norm(norm):
        return lambda x, *args, **kwargs: norm(x * (1 + noise(x)), *args, **kwargs)

    model = model_of(names)
    model.register_forward_pre_hook(shake)
    dual = names["dual"]
    norms = "batch_norm", "layer_norm", "group_norm", "instance_norm"
    with (
        mock.patch.multiple(F, **{name: shaken_norm(getattr(F, name)) for name in norms}),
        mock.patch.object(torch.func, "jvp", shaken_jvp),
        mock.patch.dict(names, dual=lambda *args: (t := dual(*args)) + noise(t)),
    ):
        return run(names, model)


def admitted(program, tries=6):
    """The program, or what is left of it without what torch refuses; and torch's run of it."""
    rng = random.Random(f"admitted {program.seed}")
    with warnings.catch_warnings(), default_dtype(program.dtype):
        warnings.simplefilter("ignore")
        expected = _as_torch(program)
        while expected.error is not None and tries:
            smaller, tries = _without_something(program, rng), tries - 1
            if smaller is None:
                break
            program, expected = smaller, _as_torch(smaller)
    return program, expected


def _as_torch(program):
    names = module_of(program)
    return run(names, model_of(names))


def _without_something(program, rng):
    """Without a write, or else without something that is done between the calls."""
    program = copy.deepcopy(program)
    writes = [s for s in program.body if WRITES.search(s.text)]
    between = [s for s in program.events if "seen" not in s.text and not re.match(r"o\d", s.text)]
    choice = writes if writes and (not between or rng.random() < 0.7) else between
    if not choice:
        return None
    part = program.body if choice is writes else program.events
    gone = rng.choice(choice)
    part[:] = [s for s in part if s is not gone]
    return program


def compare(program, found, expected):
    n = min(len(found.seen), len(expected.seen))
    verdict = differences(program, found.seen[:n], expected.seen[:n])
    if verdict.kind == WRONG:
        return verdict
    if found.error is not None and expected.error is not None:
        return Verdict(BOTH_RAISE, _said(expected.error))
    if expected.error is not None:
        return Verdict(RUNS, _said(expected.error))
    if found.error is not None:
        said, source = str(found.error), program.source()
        verified = "recomput" in said and UNSEEN.search(source)
        refused = "inplace operation" in said and WRITES.search(source) and REFUSED.search(source)
        refused = refused or (
            "Inference tensors" in said
            and re.search(f"{DERIVATIVES.pattern}|RMSNorm|rms_norm", source)
        )
        # Whether a derivative within that is zero has a graph of its own is torch's own affair.
        structural = "does not require grad" in said and DERIVATIVES.search(source)
        refused = refused or any(w in said and p.search(source) for w, p in NAMED)
        kind = VERIFIED if verified else REFUSES if refused else OK if structural else RAISES
        return Verdict(kind, _said(found.error))
    return verdict


def _said(error):
    return f"{type(error).__name__}: {str(error)[:300]}"


def flat(seen):
    for s in seen:
        if isinstance(s, list):
            yield from flat(s)
        else:
            yield s


def differences(program, found, expected):
    """OK to the last bit, ROUNDED, or WRONG, and by how much."""
    tolerance = _tolerance(program)
    worst, at = 0.0, ""
    same = True
    # Of derivatives within: whether one that is zero has a graph of its own is torch's own affair.
    is_structural = DERIVATIVES.search(program.source())
    found, expected = list(flat(found)), list(flat(expected))
    largest = max((_largest(b) for b in expected if b is not None), default=0.0)
    if len(found) != len(expected):
        return Verdict(OK if is_structural else WRONG, "another number of tensors")
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if (a is None) != (b is None):
            if is_structural and not (a if b is None else b).any():
                continue
            return Verdict(WRONG, f"tensor {i}: one is None")
        if a is None:
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return Verdict(
                WRONG,
                f"tensor {i}: {tuple(a.shape)} of {a.dtype}, not {tuple(b.shape)} of {b.dtype}",
            )
        if a.requires_grad != b.requires_grad and not is_structural:
            return Verdict(WRONG, f"tensor {i}: requires_grad is {a.requires_grad}")
        a, b = a.detach(), b.detach()
        if torch.equal(a, b):
            continue
        a, b = a.double(), b.double()
        if torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()):
            continue
        same = False
        if not torch.equal(a.isfinite(), b.isfinite()):
            return Verdict(WRONG, f"tensor {i}: other elements are not finite")
        a, b = a.nan_to_num(posinf=0, neginf=0), b.nan_to_num(posinf=0, neginf=0)
        # What cancels is as exact as what it is made of.
        off = float((a - b).abs().max()) / max(float(b.abs().max()), 0.01 * largest, 0.01)
        if off > worst:
            worst, at = off, f"tensor {i} off by {off:.2g}"
    return Verdict(OK if same else WRONG if worst > tolerance else ROUNDED, at, worst)


def _largest(t):
    t = t.detach().double().abs().nan_to_num(posinf=0)
    return float(t.max()) if t.numel() else 0.0


def _tolerance(program):
    text = program.source()
    if "bfloat16" in text or "half" in text or "float16" in text:
        return 5e-2
    if program.dtype == "float32" or "float" in text.replace("float64", "").replace(
        "is_floating", ""
    ):
        return 3e-4
    # torch's multiply by a 1/6, or 1/alpha, that is rounded to float32.
    return 1e-6 if re.search("ardsigmoid|ardswish|CELU|celu", text) else 1e-9
