"""A ledger as a picture: what is saved, by kind."""

from manualnn.tools import palette
from manualnn.tools.ledgers.words import KINDS, WEIGHT

NAMES = {
    "attention": "attention: queries, keys, values",
    "convolution": "inputs of convolutions",
    "product": "inputs of matrix products",
    "norm": "inputs of norms, statistics",
    "pooling": "pooling",
    "dropout": "dropout masks",
    "activation": "activations",
    "loss": "losses",
    "other": "sums, products, everything else",
    WEIGHT: "copies of weights",
}
COLOURS = {
    "attention": palette.PINK,
    "convolution": palette.BLUE,
    "product": palette.SKY,
    "norm": palette.ORANGE,
    "pooling": palette.GREEN,
    "dropout": palette.YELLOW,
    "activation": palette.RED,
    "loss": palette.SLATE,
    "other": palette.GREY,
    WEIGHT: palette.DARK,
}
SEEN = 1 / 500  # of the longest bar: what is shorter is not drawn


def draw(ledger, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = [("torch.nn", ledger.by_kind(ledger.torch)), ("manualnn", ledger.by_kind())]
    for kind in (*KINDS, WEIGHT):
        sizes = [of.get(kind, 0) / 2**20 for _, of in bars]
        if max(sizes) > SEEN * max(ledger.torch_total, 1) / 2**20:
            starts = [sum(of.get(k, 0) for k in before(kind)) / 2**20 for _, of in bars]
            axes.barh([0, 1], sizes, left=starts, color=COLOURS[kind], label=NAMES[kind])
    names = [name for name, _ in bars]
    totals = [ledger.torch_total, ledger.total]
    if ledger.floor is not None:
        names.append("floor")
        totals.append(ledger.floor)
        axes.barh(2, ledger.floor / 2**20, color="white", edgecolor=palette.DARK, hatch="///")
    for y, size in enumerate(totals):
        share = f"  {size / ledger.torch_total:.2f}" if ledger.torch_total and y else ""
        axes.text(size / 2**20, y, f"  {size / 2**20:.1f} MiB{share}", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(*totals, 1) / 2**20 * 1.18)
    axes.set_xlabel("MiB saved for backward")
    region = f", autocast {ledger.autocast}" if ledger.autocast else ""
    axes.set_title(f"{ledger.target}, batch {ledger.batch}{region}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def before(kind):
    kinds = [*KINDS, WEIGHT]
    return kinds[: kinds.index(kind)]
