"""Writes the script: which calls of the model, backward passes and changes between, in which order."""

from fuzzing.program import Statement

SHAPES = (
    "({c},)",
    "({n}, {c})",
    "({n}, {c})",
    "({n}, {c})",
    "({n}, {s}, {c})",
    "({n}, {c}, {s})",
    "({n}, {c}, {s}, {s})",
    "({n}, {c}, {s}, {s})",
    "({n}, {c}, {s}, {s})",
    "({c}, {s}, {s})",
    "({n}, 2, {s}, {s}, {c})",
)


def input_shape(a):
    n = a.one(1, 2, 3, 3, 4, 4)
    if a.chance(0.03):
        n = 0
    s = a.one(5, 6, 7) if a.large else a.one(3, 4, 5)
    return a.one(*SHAPES).format(n=n, c=a.width(), s=s)


class Script:
    """The events of a program; which graphs are alive."""

    def __init__(self, author, shape):
        self.a, self.shape = author, shape
        self.open = []  # (name of an output, name of its input)
        self.program = author.program
        self.outs = 0
        self.passes = 0

    def say(self, text, body=None):
        self.program.events.append(Statement(text, body))

    def write(self):
        a = self.a
        for i in range(a.one(1, 1, 2)):
            grad = a.one("", ".requires_grad_()", ".requires_grad_()")
            scale = a.one("", "", " * 2", " - 0.5")
            layout = (
                ".to(memory_format=torch.channels_last)"
                if self.shape.count(",") == 3 and a.chance(0.1)
                else ""
            )
            self.program.inputs.append(
                Statement(f"x{i} = (torch.randn{_args(self.shape, i)}{scale}){layout}{grad}")
            )
        self.inputs = len(self.program.inputs)
        self.call()
        for _ in range(a.rng.randrange(0, 6)):
            (self.call, self.finish, self.between, self.change, self.look)[
                a.rng.choice((0, 0, 1, 1, 2, 3, 3, 4))
            ]()
        while self.open:
            self.finish()

    def call(self):
        a = self.a
        if len(self.open) > 2:
            return
        self.outs += 1
        o, x = f"o{self.outs}", f"x{a.rng.randrange(self.inputs)}"
        seed = a.rng.randrange(3)
        how = f"call(model, {x}, seed={seed})"
        if a.chance(0.05):
            how = a.one(
                f"checkpoint(model, {x}, use_reentrant=False)",
                f"checkpoint(model, {x}, use_reentrant=True)",
                f"in_a_thread(model, {x})",
                f"torch.func.functional_call(model, dict(model.named_parameters()), ({x},))",
            )
            self.say("seeded(0)")
        if a.chance(0.06):
            self.say(
                a.one(
                    "with torch.autocast('cpu', torch.bfloat16):",
                    "with copying_hooks():",
                    "with numpy_hooks():",
                    "with Seeing():",
                    "with SeeingOps():",
                ),
                [Statement(f"{o} = {how}")],
            )
        else:
            self.say(f"{o} = {how}")
        self.say(f"seen.append({o})")
        self.open.append((o, x))

    def finish(self):
        a = self.a
        if not self.open:
            return
        at = a.rng.randrange(len(self.open))
        o, x = self.open[at]
        kind = a.rng.random()
        if kind < 0.15:
            self.say(f"seen.append(grads({o}, model, {x}, retain_graph=True))")
            return
        self.open.pop(at)
        if kind < 0.55:
            self.say(f"seen.append(grads({o}, model, {x}))")
        elif kind < 0.7:
            self.say(f"backward({o})")
        elif kind < 0.85:
            self.say(f"seen.append(second({o}, model, {x}))")
        elif kind < 0.9:
            self.say(f"seen.append(one_by_one({o}, model, {x}))")
        else:
            self.say(f"del {o}")

    def between(self):
        self.say(
            self.a.one(
                "model.eval()",
                "model.train()",
                "descend(model)",
                "descend(model)",
                "model.zero_grad()",
                "descend_by_data(model)",
                "model.load_state_dict(model.state_dict())",
                "model = copy.deepcopy(model)",
                "model.requires_grad_(False)",
                "next(model.parameters()).requires_grad_(False)",
                "model.double()" if self.program.dtype == "float64" else "model.float()",
                "seeded(9)",
                "model(x0 * 2)",
            )
        )

    def change(self):
        """State of the model changes between its calls; or what came out is written over."""
        a = self.a
        options = [m.replace("self.", "model.") for m in a.moved if _is_outside(m)]
        options += ["x0.data.mul_(0.5)", "x0.data.add_(0.1)"]
        if self.open and a.chance(0.3):
            o, _ = a.one(*self.open)
            options = [
                f"{o}.data.mul_(0.5)",
                f"{o}.detach().mul_(0.5)",
                f"{o}.detach().numpy()[...] = 0",
                f"{o}.mul_(2)",
                f"{o}.detach_()",
            ]
        line = a.one(*options)
        self.say("with torch.no_grad():", [Statement(line)])

    def look(self):
        x = f"x{self.a.rng.randrange(self.inputs)}"
        self.say(
            self.a.one(
                "with torch.no_grad():", "with torch.no_grad():", "with torch.inference_mode():"
            ),
            [Statement(f"seen.append(call(model, {x}, seed=1))")],
        )


def _args(shape, i):
    return shape.replace(",)", ")") if i == 0 else shape.replace(",)", ")")


def _is_outside(text):
    return "self." in text and not any(f" {letter}" in text for letter in ("h1",))
