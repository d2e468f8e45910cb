"""The page's diagram of a network: everything is there, inside, and nothing overlaps."""

from itertools import combinations

import pytest
import torch
from explain_helpers import nothing_old_to_collect  # noqa: F401
from matplotlib.patches import FancyBboxPatch

import manualnn
from manualnn import nn
from manualnn.tools.explanations import picture

SIZES = [64, 128, 4096, 96, 32, 256, 100, 12345, 64, 80, 40, 20]


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 10)),
    )


def chain(L, activation="relu", dropout=0.0, m=8):
    return manualnn.explain(nn.MLP([*SIZES[:L], 10], activation, dropout), torch.randn(m, 64))


def pictures():
    yield "1 layer", chain(1)
    yield "2 layers", chain(2)
    yield "5 layers", chain(5, "LogSigmoid", 0.25)
    yield "12 layers", chain(12)
    yield "one example", chain(3, m=1)
    yield "CNN", manualnn.explain(cnn(), torch.randn(8, 1, 28, 28))
    yield "a long name", manualnn.explain(nn.MLP([3, 2]), torch.randn(2, 3), name="long " * 40)


@pytest.fixture(scope="module")
def drawn():
    """{name: (explanation, figure, its texts and frames as they are placed)}"""
    made = {name: (explained, picture.picture(explained)) for name, explained in pictures()}
    return {name: (*one, placed(one[1])) for name, one in made.items()}


NAMES = ["1 layer", "2 layers", "5 layers", "12 layers", "one example", "CNN", "a long name"]


def placed(figure):
    """[(text, its box in pixels)] and the boxes of the frames, from the renderer."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    (axes,) = figure.axes
    texts = [(t.get_text(), t.get_window_extent(renderer)) for t in axes.texts if t.get_text()]
    frames = [p.get_window_extent(renderer) for p in axes.patches if isinstance(p, FancyBboxPatch)]
    return texts, frames


def overlaps(texts):
    return [(a, b) for (a, box), (b, other) in combinations(texts, 2) if meets(box, other)]


def meets(box, other):
    return box.x0 < other.x1 and other.x0 < box.x1 and box.y0 < other.y1 and other.y0 < box.y1


@pytest.mark.parametrize("name", NAMES)
def test_no_text_overlaps(name, drawn):
    assert overlaps(drawn[name][2][0]) == []


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_in_its_place(name, drawn):
    _, figure, (texts, frames) = drawn[name]
    width, height = figure.get_size_inches() * figure.dpi
    assert width / figure.dpi < 15
    for text, box in texts:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        # Wholly within a frame, or wholly outside of all.
        touched = [frame for frame in frames if meets(box, frame)]
        inside = [
            f
            for f in touched
            if f.x0 < box.x0 and box.x1 < f.x1 and f.y0 < box.y0 and box.y1 < f.y1
        ]
        assert touched == inside and len(inside) <= 1, text
    assert not any(meets(*pair) for pair in combinations(frames, 2))


@pytest.mark.parametrize("name", NAMES)
def test_no_arrow_runs_through_a_text(name, drawn):
    _, figure, (texts, frames) = drawn[name]
    renderer, (axes,) = figure.canvas.get_renderer(), figure.axes
    arrows = [t.arrow_patch.get_window_extent(renderer) for t in axes.texts if not t.get_text()]
    assert len(arrows) >= len(frames)
    for arrow in arrows:
        assert not [text for text, box in texts if meets(arrow, box)]


def test_the_test_sees_an_overlap(monkeypatch):
    """Boxes for text that is measured too small do overlap."""
    measure = picture.Page.measure
    monkeypatch.setattr(picture.Page, "measure", lambda *args, **kw: measure(*args, **kw) / 4)
    assert overlaps(placed(picture.picture(chain(5)))[0])


def test_all_of_the_page_is_there(drawn):
    explained, _, (texts, _) = drawn["5 layers"]
    shown = [text for text, _ in texts]
    for l in range(1, 6):
        n, n_prev = explained.sizes[l], explained.sizes[l - 1]
        for line in (
            *(f"W[{l}] ({n}, {n_prev})", f"b[{l}] ({n}, 1)", f"cache Z[{l}]"),
            *(f"dW[{l}] ({n}, {n_prev})", f"db[{l}] ({n}, 1)", f"dZ[{l}] ({n}, 8)"),
            *(f"A[{l - 1}]", f"A[{l}]", f"dA[{l - 1}]", f"dA[{l}]"),
        ):
            assert line in shown, line
    assert shown.count("g = LogSigmoid") == shown.count("dropout 0.25") == 4
    assert "from the loss" in shown and "saved: R[1], 1.00 KiB" in shown


def test_long_networks_go_on_in_the_next_row(drawn):
    counts = {}
    for name in ("2 layers", "12 layers"):
        *_, (_, frames) = drawn[name]
        counts[name] = len({round(frame.y1) for frame in frames})
    assert counts["2 layers"] == 2 and counts["12 layers"] >= 6  # above and below, row by row


def test_a_file_of_each_kind(tmp_path, drawn):
    explained, *_ = drawn["2 layers"]
    for ending, begins in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        paths = [tmp_path / f"{i}.{ending}" for i in range(2)]
        for path in paths:
            explained.plot(path)
        first, second = (path.read_bytes() for path in paths)
        assert first == second and first.startswith(begins)
    with pytest.raises(ValueError, match="not supported"):
        explained.plot(tmp_path / "x.what")


def test_what_branches_is_refused(tmp_path):
    class Branch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.a(x) + self.b(x)

    explained = manualnn.explain(Branch(), torch.randn(2, 3))
    with pytest.raises(ValueError, match="branches"):
        explained.plot(tmp_path / "x.svg")
    assert not (tmp_path / "x.svg").exists()
