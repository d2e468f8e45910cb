"""The page's diagram of a network: boxes forward above, what is cached between, the way back below.

    a[l-1] -> [ W[l], b[l], g ] -> a[l]
                     | cache z[l]
    da[l-1] <- [ W[l], g′, dz[l] ] <- da[l]
                     | dW[l], db[l]

Everything is placed in inches, by the measured size of its text: no box is smaller than what stands in it.
"""

from dataclasses import dataclass
from typing import Any

from manualnn.tools.explanations.page import straight
from manualnn.tools.explanations.text import by, flops
from manualnn.tools.ledgers.report import read
from manualnn.tools.palette import BLUE, DARK_GREEN, INK, RED

FORWARD, BACKWARD, SAVED = BLUE, RED, DARK_GREEN
WIDEST, NARROWEST = 13.5, 5.5  # inches of a row
SIZE, TITLE = 9.0, 11.0  # points
LINE, PAD, GAP, MARGIN = 0.19, 0.09, 0.17, 0.25  # inches
STEM = 0.3  # from a box's left side to the arrow that leaves it downwards


@dataclass(frozen=True)
class Stage:
    """A box of the picture and its partner below; each field the lines of text at that place."""

    forward: list
    saved: list
    backward: list
    gradients: list
    given: list  # on the arrow that comes in from the left
    made: list  # on the arrow that goes out to the right
    d_given: list  # on the arrows of the way back, left and right
    d_made: list


def draw(explanation, path):
    figure = picture(explanation)
    import matplotlib

    # Letters as shapes: the picture is the same where the font is not installed. No date: made twice from
    # the same network, it is the same file.
    with matplotlib.rc_context({"svg.hashsalt": "manualnn", "svg.fonttype": "path"}):
        dated = str(path).lower().endswith((".svg", ".pdf"))
        no_date = {"CreationDate" if str(path).lower().endswith(".pdf") else "Date": None}
        figure.savefig(path, dpi=150, metadata=no_date if dated else None)


def picture(explanation):
    """The matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if explanation.layers is not None:
        stages = [_layer(layer, explanation) for layer in explanation.layers]
    else:
        stages = _steps(explanation)
    figure = Figure(figsize=(4, 4), dpi=150)
    FigureCanvasAgg(figure)
    page = Page(figure)
    rows = page.fit(stages)
    width = max(page.across, NARROWEST) + 2 * MARGIN
    title = page.wrapped(_title(explanation), width - 2 * MARGIN, TITLE, bold=True)
    notes = page.wrapped(_notes(explanation), width - 2 * MARGIN, SIZE)
    head = len(title) * LINE * TITLE / SIZE + len(notes) * LINE + GAP
    heights = [page.height_of(row) for row in rows]
    height = 2 * MARGIN + head + sum(heights) + GAP * 1.6 * (len(rows) - 1)
    page.open(width, height)
    y = height - MARGIN
    for line in title:
        page.text(MARGIN, y - LINE * TITLE / SIZE / 2, line, INK, TITLE, "left", bold=True)
        y -= LINE * TITLE / SIZE
    for line in notes:
        page.text(MARGIN, y - LINE / 2, line, INK, SIZE, "left")
        y -= LINE
    y -= GAP
    for row, tall in zip(rows, heights, strict=True):
        page.row(row, MARGIN, y)
        y -= tall + GAP * 1.6
    return figure


def _title(e):
    sizes = " → ".join(map(str, e.sizes)) if e.sizes else f"{by(e.given[0])} → {by(e.returned[0])}"
    return f"{e.name}: {sizes}, m = {e.m}"


def _notes(e):
    message = (
        f"{e.parameters:,} parameters; {flops(e.flops[0])} forward, {flops(e.flops[1])} backward; "
        f"{read(e.saved)} saved for backward."
    )
    if e.layers is None:
        return message
    columns = "Examples are columns. " if e.m > 1 else ""
    return f"{message} {columns}Cache: as on the page; saved: what is in memory."


def _layer(layer, explanation):
    s, shapes = layer.symbols, layer.matrices()

    def sized(name):
        return f"{name} {shapes[name]}"

    forward = [sized(s["W"])]
    if layer.b:
        forward.append(sized(s["b"]))
    forward.append(f"g = {layer.g.name}" if layer.g else "no g")
    if layer.dropout:
        forward.append(f"dropout {layer.dropout:g}")
    saved = [f"cache {s['z']}", *_saved(layer.saved)]
    backward = [
        f"{s['W']}, g′" if layer.g else s["W"],
        sized(f"d{s['z']}") if layer.reached else "left out",
    ]
    gradients = [sized(f"d{s['W']}")] if layer.needs.W else [f"d{s['W']} left out"]
    if layer.b:
        gradients.append(sized(f"d{s['b']}") if layer.needs.b else f"d{s['b']} left out")
    d_given = [f"d{s['a_prev']}"]
    if not layer.needs.a_prev:
        d_given.append("left out")
    else:
        d_given.append(str(shapes[f"d{s['a_prev']}"]))
    return Stage(
        forward,
        saved,
        backward,
        gradients,
        [s["a_prev"], str(shapes[s["a_prev"]])],
        [s["a"], str(shapes[s["a"]])],
        d_given,
        [f"d{s['a']}", "from the loss" if layer.last else str(shapes[s["a"]])],
    )


def _saved(tensors):
    """What is really saved, in a few words: A[1], 64 KiB."""
    counted = [one for one in tensors if one.bytes]
    if not counted:
        return ["saved: nothing"]
    return [f"saved: {one.what or by(one.shape)}, {read(one.bytes)}" for one in counted]


def _steps(explanation):
    row = straight(explanation._ops)
    if row is None:
        raise ValueError(
            f"{explanation.name} branches: it is no row of boxes. Its text and its JSON say what is in it; "
            "manualnn.ledger draws what it saves"
        )
    stages = []
    for i, (step, op) in enumerate(zip(explanation.steps, row, strict=True), start=1):
        own = [f"{path.rpartition('.')[2]} {by(shape)}" for path, shape in op.parameters.items()]
        size = sum(one.bytes for one in step.saved)
        given = by(step.shapes_in[0]) if step.shapes_in else by(explanation.given[0])
        last = i == len(row)
        stages.append(
            Stage(
                [step.op, *own],
                [f"saved: {read(size)}" if size else "saved: nothing"],
                [step.op, "backward"],
                [f"d{text}" for text in own],
                [f"x[{i - 1}]", given],
                [f"x[{i}]", by(step.shape)],
                [f"dx[{i - 1}]", given if i > 1 else "of the input"],
                [f"dx[{i}]", "from the loss" if last else by(step.shape)],
            )
        )
    return stages


class Page:
    """A figure on which things are placed in inches, y upwards."""

    def __init__(self, figure):
        self.figure = figure
        self._renderer = figure.canvas.get_renderer()
        self._axes: Any = None
        self._sizes: dict[Any, Any] = {}

    def open(self, width, height):
        self.figure.set_size_inches(width, height)
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(0, height)
        self._axes.axis("off")

    def measure(self, line, size=SIZE, bold=False):
        """Width of a line of text, in inches."""
        from matplotlib.font_manager import FontProperties

        if (line, size, bold) not in self._sizes:
            font = FontProperties(size=size, weight="bold" if bold else "normal")
            width, *_ = self._renderer.get_text_width_height_descent(line, font, ismath=False)
            self._sizes[line, size, bold] = width / self.figure.dpi
        return self._sizes[line, size, bold]

    def widest(self, lines):
        return max((self.measure(line) for line in lines), default=0.0)

    def wrapped(self, text, width, size, bold=False):
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if self.measure(longer, size, bold) > width and lines[-1]:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    # A grid: all boxes are of one width, all arrows between them of one length.

    def fit(self, stages):
        """Chooses the widths that hold every text, and how the stages are put into rows.

        Rows of about the same number of stages, none wider than WIDEST if one stage alone is not.
        """
        inside = max(self.widest(stage.forward + stage.backward) for stage in stages) + 2 * PAD
        beside = (
            max(self.widest(stage.saved + stage.gradients) for stage in stages) + STEM + 2 * PAD
        )
        self.box = max(inside, beside)
        arrows = [stage.given + stage.d_given + stage.made + stage.d_made for stage in stages]
        self.arm = max(map(self.widest, arrows)) + 2 * GAP
        most = max(1, int((WIDEST - self.arm) / (self.box + self.arm)))
        count = -(-len(stages) // most)
        length = -(-len(stages) // count)
        self.across = self.arm + length * (self.box + self.arm)
        return [stages[i : i + length] for i in range(0, len(stages), length)]

    def parts(self, row):
        """Heights: the upper boxes, what is cached, the lower boxes, the gradients."""

        def tallest(of):
            return max(len(of(stage)) for stage in row) * LINE

        upper, lower = (tallest(of) + 2 * PAD for of in (_forward, _backward))
        between, below = (tallest(of) + 2 * PAD for of in (_between, _below))
        # The labels of a horizontal arrow stand above and below it: two lines, and room.
        return max(upper, 2 * LINE + 0.2), between, max(lower, 2 * LINE + 0.2), below

    def height_of(self, row):
        return sum(self.parts(row))

    # Drawing.

    def row(self, row, x, top):
        upper, between, lower, below = self.parts(row)
        ahead, back = top - upper / 2, top - upper - between - lower / 2
        width, behind = self.box, self.arm
        self.along(x, x + behind, ahead, row[0].given, FORWARD)
        self.along(x + behind, x, back, row[0].d_given, BACKWARD)
        x += behind
        for stage in row:
            self.frame(x, top - upper, width, upper, stage.forward, FORWARD)
            self.frame(x, back - lower / 2, width, lower, stage.backward, BACKWARD)
            stem = x + STEM
            self.down(stem, top - upper, top - upper - between, stage.saved, SAVED)
            bottom = back - lower / 2
            if stage.gradients:
                self.down(stem, bottom, bottom - below, stage.gradients, BACKWARD)
            self.along(x + width, x + width + behind, ahead, stage.made, FORWARD)
            self.along(x + width + behind, x + width, back, stage.d_made, BACKWARD)
            x += width + behind

    def frame(self, x, y, width, height, lines, colour):
        from matplotlib.patches import FancyBboxPatch

        rounded = "round,pad=0,rounding_size=0.06"
        patch = FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle=rounded,
            facecolor="white",
            edgecolor=colour,
            linewidth=1.4,
        )
        patch.set_gid("box")
        self._axes.add_patch(patch)
        self.lines(x + width / 2, y + height / 2, lines, INK, "center")

    def lines(self, x, y, lines, colour, align):
        """Lines of text around a height y."""
        start = y + (len(lines) - 1) * LINE / 2
        for i, line in enumerate(lines):
            self.text(x, start - i * LINE, line, colour, SIZE, align)

    def along(self, start, end, y, labels, colour):
        """A horizontal arrow, its name above and its shape below."""
        self.arrow((start, y), (end, y), colour)
        name, shape = labels
        middle = (start + end) / 2
        self.text(middle, y + LINE * 0.68, name, colour, SIZE, "center")
        self.text(middle, y - LINE * 0.68, shape, colour, SIZE, "center")

    def down(self, x, start, end, labels, colour):
        """A vertical arrow, its labels to the right."""
        self.arrow((x, start), (x, end), colour)
        self.lines(x + PAD, (start + end) / 2, labels, colour, "left")

    def arrow(self, start, end, colour):
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2}
        style |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
        self._axes.annotate("", xy=end, xytext=start, arrowprops=style, annotation_clip=False)

    def text(self, x, y, line, colour, size, align, bold=False):
        weight = "bold" if bold else "normal"
        placed = {"ha": align, "va": "center_baseline", "color": colour, "weight": weight}
        self._axes.text(x, y, line, fontsize=size, parse_math=False, **placed)


def _forward(stage):
    return stage.forward


def _backward(stage):
    return stage.backward


def _between(stage):
    return stage.saved


def _below(stage):
    return stage.gradients
