"""The pictures of a run: what they are drawn from, and that they say it."""

import numpy as np
import pytest
import torch
from monitored import events, run
from torch import nn

import manualnn
from manualnn.tools.palette import BLUE, GREY, ORANGE, RED
from manualnn.training import ImageClassifier, ImageData
from manualnn.training.monitors import Monitor, flow, validation
from manualnn.training.monitors.drawing import cut, length
from manualnn.training.monitors.history import Record
from manualnn.training.monitors.layers import LayerHooks, LayerSignals, layers_of
from manualnn.training.monitors.validation import Pass, confusion, draw_confusion, draw_first_layer
from manualnn.training.monitors.writing import histogram

NAMES = tuple("abc")


def pixels(image):
    """(height, width, 3)."""
    return np.asarray(image.convert("RGB"))


def scores(rows):
    """Scores whose softmax has these probabilities."""
    return torch.tensor(rows).log()


def seen(batches=2):
    """Six images of three classes: two are taken for another class, at 0.9 and at 0.6."""
    given = Pass()
    rows = [
        [0.8, 0.1, 0.1],
        [0.1, 0.8, 0.1],
        [0.05, 0.9, 0.05],
        [0.1, 0.1, 0.8],
        [0.2, 0.6, 0.2],
        [0.3, 0.4, 0.3],
    ]
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    images = torch.arange(6.0)[:, None, None, None].expand(-1, 1, 4, 4) / 5
    for part in torch.arange(6).chunk(batches):
        given.see(scores(rows)[part], images[part], labels[part])
    return given


@pytest.mark.parametrize("batches", [1, 2, 6])
def test_a_pass_knows_its_counts_and_its_most_confident_mistakes(batches):
    given = seen(batches)
    assert confusion(given, 3).tolist() == [[1, 1, 0], [0, 2, 0], [0, 1, 1]]
    confidence, images, labels, predicted = given.mistakes
    assert confidence[:2].tolist() == pytest.approx([0.9, 0.6])
    assert (confidence[2:] < 0).all()
    assert images[:2, 0, 0, 0].tolist() == pytest.approx([0.4, 0.8])
    assert (labels[:2].tolist(), predicted[:2].tolist()) == ([2, 0], [1, 1])


def test_a_pass_over_many_images_does_not_keep_them(monkeypatch):
    monkeypatch.setattr(validation, "WAITING", 100)
    monkeypatch.setattr(validation, "MOST_MISTAKES", 2)
    given = seen(6)
    assert sum(len(images) for _, images, _ in given.waiting) <= 1
    assert len(given.mistakes[1]) == 2
    assert given.mistakes[0].tolist() == pytest.approx([0.9, 0.6])


def test_class_accuracy_leaves_out_a_class_without_images():
    matrix = torch.tensor([[3, 1, 0], [0, 0, 0], [0, 1, 1]])
    line = validation.accuracy_line(matrix, NAMES)
    assert line == {"accuracy_of_class/a": 0.75, "accuracy_of_class/c": 0.5}


@pytest.mark.parametrize("count", [3, 30, 60])
def test_the_confusion_matrix_is_drawn_for_few_and_many_classes(count):
    matrix = torch.eye(count, dtype=torch.long) * 5
    names = tuple(f"class {i}" for i in range(count))
    good, bad = (
        pixels(draw_confusion(matrix, names)),
        pixels(draw_confusion(matrix.roll(1, 0), names)),
    )
    assert (good != bad).any()


def test_mistakes_are_shown_as_people_know_them():
    """A grey image stays as grey, though the network sees it normalised."""
    data = ImageData(dataset="Digits", batch_size=64)
    data.prepare_data()
    data.setup("fit")
    levels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(data.as_seen(data.scale(levels)), levels / 255, rtol=0, atol=1e-5)
    given = Pass()
    given.see(scores([[0.1, 0.8, 0.1]]), data.scale(torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)),
              torch.tensor([0]))  # fmt: skip
    given.digest()
    picture = pixels(validation.draw_mistakes(given, data.as_seen, NAMES))
    middle = picture[-picture.shape[0] // 4, picture.shape[1] // 2]
    assert middle.tolist() == [100, 100, 100]
    given.mistakes = (torch.tensor([-1.0]), *given.mistakes[1:])
    assert validation.draw_mistakes(given, data.as_seen, NAMES) is None


def test_the_first_layers_weights_are_images():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3, 5))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[0, 0], net[1].weight[0, 5] = 2.0, -2.0
    grid = pixels(draw_first_layer(layers_of(net), (1, 2, 3)))
    first = grid[2:-2, 2 : 2 + 54, 0]
    assert [first[1, 1], first[1, -2], first[-2, 1], first[-2, -2]] == [255, 128, 128, 0]
    assert draw_first_layer(layers_of(net), (1, 2, 4)) is None
    convolution = nn.Conv2d(3, 7, 5)
    assert draw_first_layer(layers_of(convolution), (3, 8, 8)).mode == "RGB"
    assert draw_first_layer([], (3, 8, 8)) is None


# The flow picture.


def signals(dz=0.1, spread=1.0, dead=None):
    return LayerSignals(
        dz_norm=dz, dz_spread=dz, dW_norm=1.0, update=-3.0, a_mean=0.0, a_spread=spread, dead=dead
    )


def count(picture, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture.astype(int) - wanted).max(2) <= 3).sum())


def drawn(layers, kept=None, name="layer"):
    labels = [f"{i:02d}_{name}" for i in range(1, len(layers) + 1)]
    return pixels(flow.draw_flow(labels, Record(7, 0.1, layers), kept, "step 7"))


def test_the_flow_picture_marks_what_is_wrong_and_nothing_else():
    good = drawn([signals()] * 4)
    assert count(good, RED) == 0 and count(good, BLUE) > 5000 and count(good, ORANGE) > 5000
    for wrong in (1e-6, 1e5, float("inf"), float("nan")):
        assert count(drawn([signals(wrong), *[signals()] * 3]), RED) > 100, wrong
    assert count(drawn([signals(spread=1e-5), *[signals()] * 3]), RED) > 100
    half_dead = drawn([signals(dead=0.5), *[signals()] * 3])
    assert count(half_dead, GREY) > count(good, GREY) + 1000
    assert count(half_dead, BLUE) < count(good, BLUE) - 1000


def test_a_box_is_wide_where_much_is_kept():
    layers = [signals()] * 2
    more = count(drawn(layers, [1000.0, 1000.0]), BLUE)
    less = count(drawn(layers, [1000.0, 10.0]), BLUE)
    assert less < 0.8 * more


@pytest.mark.parametrize("name", ["layer", "features.block2.convolution", "x" * 90])
@pytest.mark.parametrize("layers", [1, 2, 5, 12, 30, 600])
def test_the_flow_picture_has_room_for_any_number_of_layers(layers, name):
    picture = drawn([signals(1e-7, dead=0.5), *[signals()] * (layers - 1)], [100.0] * layers, name)
    assert picture.shape[0] < 600 and picture.shape[1] <= 1440
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == 255).all()  # nothing is cut off


def test_the_flow_picture_is_a_small_file(tmp_path):
    """TensorBoard's writer takes a tenth of a millisecond for each kilobyte."""
    labels = [f"{i:02d}_Linear" for i in range(1, 6)]
    picture = flow.draw_flow(
        labels, Record(7, 0.1, [signals(dead=0.2)] * 5), [9.0] * 5, "step 7, epoch 1"
    )
    picture.save(tmp_path / "flow.png", compress_level=3)
    assert (tmp_path / "flow.png").stat().st_size < 12_000


def test_a_layer_without_signals_is_drawn_too():
    assert drawn([LayerSignals(), signals()]).shape[2] == 3
    assert drawn([LayerSignals()]).shape[2] == 3


def test_bytes_kept_are_the_ledgers_and_the_network_does_not_notice():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(256, 10),
    )  # fmt: skip
    manualnn.convert(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images = torch.randn(2, 1, 8, 8)
    state = torch.random.get_rng_state()
    kept = flow.kept_bytes(net, images, LayerHooks(net).layers, None)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    whole = manualnn.ledger(net, images).total / 2
    assert sum(kept) == pytest.approx(whole, rel=0.02)
    # The convolution keeps the image and makes the rest again; the last layer reads a mask besides.
    assert kept[0] > kept[1] >= 0


def test_bytes_kept_by_a_network_of_one_node_are_its_layers():
    net = ImageClassifier(
        hidden_units=[24, 16], dropout=0.2, num_classes=10, image_shape=(1, 8, 8)
    ).network
    kept = flow.kept_bytes(net, torch.randn(2, 1, 8, 8), LayerHooks(net).layers, None)
    # Masks of a byte a unit in front; a[1] and a[2] are what the products behind them read.
    assert kept == [24, 24 * 4 + 16, 16 * 4]


def test_a_network_that_cannot_be_copied_is_drawn_without_widths():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copy of me")

    net = Stubborn(3, 2)
    assert flow.kept_bytes(net, torch.randn(2, 3), layers_of(net), None) is None


# Histograms.


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(50),
        np.full(3, -2.5),
        np.array([4.0]),
        np.arange(7.0),
        np.array([1.0, 1.0 + 2**-52]),
    ],
    ids=["zeros", "the same", "one", "few", "close"],
)
def test_a_histogram_counts_each_value_once(values):
    box = histogram(values)
    assert sum(box.bucket) == box.num == len(values) and len(box.bucket) == len(box.bucket_limit)
    assert (box.min, box.max, box.bucket_limit[-1]) == (values.min(), values.max(), values.max())
    assert box.sum == pytest.approx(values.sum())
    assert box.sum_squares == pytest.approx((values**2).sum())
    assert list(box.bucket_limit) == sorted(set(box.bucket_limit))


def test_a_histogram_is_fine_where_the_values_lie():
    """One far value does not put all others into a single box."""
    values = np.random.default_rng(0).normal(size=4096)
    far = histogram(np.append(values, 1e6))
    limits, counts = np.array(far.bucket_limit), np.cumsum(far.bucket)
    for share in (0.1, 0.5, 0.9):
        limit = limits[np.searchsorted(counts, share * far.num)]
        assert limit == pytest.approx(np.quantile(values, share), abs=0.4)
    # And what it counts is true, box by box.
    for limit, count in zip(far.bucket_limit[:-1], counts, strict=False):
        assert count == (np.append(values, 1e6) < limit).sum()


def test_words_are_cut_to_their_room():
    assert cut("Ankle boot", 200) == "Ankle boot"
    for room in (20, 40, 60):
        short = cut("features.block2.convolution", room)
        assert length(short) <= room < length("features.block2.convolution"[: len(short)] + "…")
    assert cut("features", 1) == "…"


# What a run writes.


def test_a_run_leaves_every_picture_curve_and_the_projector(tmp_path):
    run(tmp_path, monitor=Monitor(2, embedding=True), epochs=2, data={"batch_size": 256})
    tags = events(tmp_path).Tags()
    assert set(tags["images"]) == {
        "flow", "validation/confusion", "validation/mistakes", "weights/first_layer",
    }  # fmt: skip
    assert {f"class/{digit}" for digit in range(10)} <= set(tags["tensors"])
    assert "custom_scalars__config__" in tags["tensors"]
    assert [e.step for e in events(tmp_path).Images("flow")] == [6, 12]
    folder = tmp_path / "version_0"
    assert "last_hidden" in (folder / "projector_config.pbtxt").read_text()
    (table,) = folder.glob("**/tensors.tsv")
    rows = table.read_text().splitlines()
    assert len(rows) == 144 and len(rows[0].split("\t")) == 32
    labels = (table.parent / "metadata.tsv").read_text().split()
    assert len(labels) == 144 and set(labels) == set("0123456789")
    assert (table.parent / "sprite.png").is_file()
