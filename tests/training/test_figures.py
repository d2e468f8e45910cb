"""What a run is judged by, against scikit-learn's figures of all examples at once; and the losses."""

from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from manualnn.training import ImageClassifier, TrainingError
from manualnn.training.model.criterion import CrossEntropy, Prediction, QuadraticLoss
from manualnn.training.model.metrics import MONITORED, ConfusionCounts, Tally, better, is_reported

ALONE = SimpleNamespace(world_size=1)


def drawn(classes, count=257):
    torch.manual_seed(classes)
    return torch.randn(count, classes), torch.randint(classes, (count,))


def told(classes, scores, labels, size=32):
    mistakes = ConfusionCounts(classes)
    for chosen in zip(scores.split(size), labels.split(size), strict=True):
        mistakes.update(*chosen)
    return mistakes.compute(ALONE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 11, 100])
def test_a_table_of_mistakes_tells_what_scikit_learn_does(classes, dtype):
    scores, labels = drawn(classes)
    scores = scores.to(dtype)
    found, guesses = told(classes, scores, labels), scores.argmax(1)
    assert found["balanced_acc"] == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert ("top5_acc" in found) == (classes > 10)


def test_one_of_the_five_best_is_enough():
    scores, labels = drawn(23)
    wanted = top_k_accuracy_score(labels, scores, k=5, labels=range(23))
    assert told(23, scores, labels)["top5_acc"] == pytest.approx(wanted)


def test_a_class_without_examples_has_no_accuracy_and_a_false_answer_lowers_f1(recwarn):
    labels = torch.tensor([0, 0, 1, 1])
    scores = F.one_hot(torch.tensor([0, 2, 1, 1]), 4).double()
    found = told(4, scores, labels)
    assert found["balanced_acc"] == pytest.approx((0.5 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert not recwarn.list


def test_what_is_told_depends_on_no_batch_and_on_nothing_before_a_reset(monkeypatch):
    scores, labels = drawn(12)
    whole = told(12, scores, labels, size=257)
    monkeypatch.setattr(Tally, "MOST", 3)
    mistakes = ConfusionCounts(12)
    mistakes.update(scores.flip(1), labels)
    mistakes.reset()
    for score, label in zip(scores.split(1), labels.split(1), strict=True):
        mistakes.update(score, label)
    assert mistakes.compute(ALONE) == whole


def test_losses_are_best_when_small():
    assert {name: better(name) for name in MONITORED}["val/macro_f1"] == "max"
    assert [better(name) for name in MONITORED if "loss" in name] == ["min", "min"]
    assert is_reported("val/top5_acc", 11) and not is_reported("val/top5_acc", 10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_example_weighs_the_same_in_any_batch(smoothing):
    scores, labels = drawn(3, 50)
    weights = [0.5, 2.0, 3.0]
    loss = CrossEntropy(weights, smoothing)
    each = F.cross_entropy(
        scores, labels, torch.tensor(weights), reduction="none", label_smoothing=smoothing
    )
    assert torch.allclose(loss(scores, labels), each.mean())
    halves = [loss(s, y) for s, y in zip(scores.split(25), labels.split(25), strict=True)]
    assert torch.allclose(sum(halves) / 2, each.mean())


def test_balanced_weights_are_scikit_learns():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    loss = CrossEntropy("balanced", 0.0)
    loss.balance(torch.bincount(labels), ("a", "b", "c"))
    wanted = compute_class_weight("balanced", classes=labels.unique().numpy(), y=labels.numpy())
    assert loss.class_weights == pytest.approx(list(wanted))
    with pytest.raises(TrainingError, match="the class b has no training image"):
        loss.balance(torch.tensor([3, 0]), ("a", "b"))


@pytest.mark.parametrize("loss", [CrossEntropy(None, 0.0), CrossEntropy([1.0, 3.0, 2.0], 0.1)])
def test_shares_of_one_class_alone_are_that_class(loss):
    scores, labels = drawn(3, 20)
    for measure in (loss, QuadraticLoss()):
        shares = F.one_hot(labels, 3).float()
        assert torch.allclose(measure(scores, labels), measure(scores, shares))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"class_weights": [1.0]},
            r"class_weights is \[1.0\]; needed is a number above 0 for each",
        ),
        ({"class_weights": [1.0, 0.0]}, "a number above 0"),
        ({"class_weights": [1.0, float("nan")]}, "a number above 0"),
        ({"class_weights": "equal"}, "known: balanced, or numbers"),
        ({"class_weights": "balanced", "loss": "quadratic"}, "belongs to cross_entropy"),
        ({"warmup_steps": -1}, "cannot be negative"),
        ({"head_lr": 0.0}, "head_lr is 0.0; it must be above 0"),
        ({"replace_head": True}, "replace_head says what becomes of a `network`"),
        ({"freeze": ["2"]}, "the network has no part '2'; it has 0, 1"),
        ({"freeze": ["1"]}, "freeze leaves nothing that learns"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(TrainingError, match=words):
        ImageClassifier(num_classes=2, hidden_units=[4], **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quadratic", [True, False])
def test_the_class_is_that_of_the_largest_score_where_probabilities_are_equal(quadratic, dtype):
    scores = torch.tensor([[40.0, 50.0, 45.0], [-300.0, -200.0, -100.0]], dtype=dtype)
    probabilities, order = Prediction.of(scores, quadratic)
    assert order.tolist() == [[1, 2, 0], [2, 1, 0]]
    assert probabilities.dtype == torch.promote_types(dtype, torch.float32)
    if quadratic:
        assert dtype == torch.float64 or probabilities[0].eq(1).all()
