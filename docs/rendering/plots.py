"""Curves of the ops, drawn by running them: what a reader sees is what a call returns."""

import io
import re

import torch

SAMPLES, SPAN = 1601, 4.0
# Stand-ins that the page's own style sheet gives a colour, light or dark.
COLOURS = {
    "#010203": "var(--plot-text)",
    "#020304": "var(--plot-g)",
    "#030405": "var(--plot-slope)",
}
TEXT, VALUE, SLOPE = COLOURS


def curves(function, low=-SPAN, high=SPAN, label=("g(z)", "g′(z)"), axis="z"):
    """An SVG of a function of one number, and of its derivative, which its own backward computes.

    Where the derivative jumps, a dot shows its value there.
    """
    z = torch.linspace(low, high, SAMPLES, dtype=torch.float64)
    a, slope = both(function, z)
    kinks = list(jumps(function, z, slope))
    return svg(
        z, a, broken(z, slope, kinks), [(k, both(function, k)[1]) for k in kinks], label, axis
    )


def both(function, z):
    z = torch.as_tensor(z, dtype=torch.float64).clone().requires_grad_()
    a = function(z)
    (slope,) = torch.autograd.grad(a.sum(), z)
    return a.detach(), slope


def jumps(function, z, slope):
    """Where the derivative jumps, to six digits."""
    step = z[1] - z[0]
    for i in ((slope[1:] - slope[:-1]).abs() > 20 * step).nonzero().flatten().tolist():
        left, right = z[i].item(), z[i + 1].item()
        at_left, at_right = slope[i], slope[i + 1]
        for _ in range(30):
            middle = (left + right) / 2
            there = both(function, middle)[1]
            if (there - at_left).abs() < (there - at_right).abs():
                left = middle
            else:
                right = middle
        yield round((left + right) / 2, 6) + 0.0


def broken(z, slope, kinks):
    """The derivative with a gap at each jump, so that no line is drawn where there is none."""
    slope = slope.clone()
    for kink in kinks:
        slope[(z - kink).abs().argmin()] = torch.nan
    return slope


def svg(z, a, slope, dots, label, axis):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.5))
    axes = figure.add_axes((0.09, 0.13, 0.88, 0.82))
    axes.axhline(0, color=TEXT, linewidth=0.6, alpha=0.5)
    if z[0] < 0 < z[-1]:
        axes.axvline(0, color=TEXT, linewidth=0.6, alpha=0.5)
    axes.plot(z, a, color=VALUE, linewidth=1.9, label=label[0])
    axes.plot(z, slope, color=SLOPE, linewidth=1.6, label=label[1])
    for at, value in dots:
        axes.plot([at], [value], "o", color=SLOPE, markersize=4)
    lowest = min(a.min(), slope[~slope.isnan()].min())
    low, high = min(lowest, -0.25), min(max(a.max(), 1.1), max(4.2, z[-1] - 1.8))
    axes.set_ylim(max(low, -4.2) - 0.15, high + 0.15)
    axes.set_xlim(z[0], z[-1])
    axes.set_xlabel(axis, color=TEXT, fontsize=9, labelpad=0)
    axes.tick_params(colors=TEXT, labelsize=8, length=2.5, width=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=TEXT, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, labelcolor=TEXT, handlelength=1.4, loc="best")
    return drawn(figure)


def drawn(figure):
    """The figure as SVG inside a page: in the page's colours and fonts, the same at each build."""
    import matplotlib

    plain = {"svg.fonttype": "none", "svg.hashsalt": "manualnn"}
    with matplotlib.rc_context(plain), io.StringIO() as file:
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return in_page(file.getvalue())


def in_page(text):
    """Without what only a file of its own needs, and without names that two pictures would share."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' id="[a-z]+[0-9a-z]*_[0-9a-z_]+"', "", text)
    text = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, variable)
    return re.sub(r"\s*\n\s*", " ", text).strip()
