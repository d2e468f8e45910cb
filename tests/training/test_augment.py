"""Transforms of torchvision's for training images: each its own draw, the same in the same batch."""

import pytest
import torch
from torchvision.transforms import v2

from manualnn.training.data import DataError
from manualnn.training.data.augment import Augment

SHAPE = (3, 16, 16)


def images(count=6, shape=SHAPE):
    return torch.randint(0, 256, (count, *shape), generator=torch.manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("shape", [SHAPE, (1, 16, 16)])
@pytest.mark.parametrize(
    "wanted",
    [
        "RandAugment", "TrivialAugmentWide", "RandomResizedCrop", ["RandomErasing", "RandomInvert"],
        {"ColorJitter": {"brightness": 0.5}, "RandomResizedCrop": {"scale": [0.5, 1.0]}},
    ],
)  # fmt: skip
def test_a_batch_is_a_function_of_its_seed_alone(wanted, shape):
    batch = images(16, shape)
    augment = Augment(wanted, shape, 4)
    torch.manual_seed(5)
    first, state = augment.change(batch, 3), torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)  # what others draw is as it was
    torch.manual_seed(6)
    assert torch.equal(augment.change(batch, 3), first)
    assert not torch.equal(augment.change(batch, 4), first)
    assert first.shape == batch.shape and first.dtype == torch.uint8


def test_each_image_gets_a_draw_of_its_own():
    same = images(1).expand(12, -1, -1, -1)
    changed = Augment("RandomResizedCrop", SHAPE, 4).change(same, 0)
    assert len({image.numpy().tobytes() for image in changed}) > 6


def test_images_and_their_labels_are_mixed_alike():
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    batch = torch.nn.functional.one_hot(labels, 4)[:, :, None, None].float().expand(-1, -1, 8, 8)
    for wanted in ("MixUp", "CutMix", ["MixUp", "CutMix"]):
        augment = Augment(wanted, (4, 8, 8), 4)
        assert torch.equal(augment.change(images(), 0), images())
        for seed in range(5):
            mixed, shares = augment.mix(batch, labels, seed)
            assert torch.allclose(mixed.mean((2, 3)), shares, atol=1e-5)
            assert torch.allclose(shares.sum(1), torch.ones(6))


def test_one_of_the_two_mixtures_is_drawn():
    augment = Augment({"MixUp": {"alpha": 0.4}, "CutMix": None}, SHAPE, 4)
    assert dict(augment._mixing)["MixUp"]._dist.concentration0 == pytest.approx(0.4)
    labels, batch = torch.arange(4), images(4).float()
    blended = [(augment.mix(batch, labels, seed)[0] % 1 != 0).any().item() for seed in range(20)]
    assert 0 < sum(blended) < 20


def test_sizes_and_classes_are_the_images():
    augment = Augment(["RandomCrop", "CutMix"], SHAPE, 7)
    assert dict(augment._single)["RandomCrop"].size == [16, 16]
    assert dict(augment._mixing)["CutMix"].num_classes == 7


@pytest.mark.parametrize(
    "name", ["Transform", "Lambda", "Compose", "functional", "_transform", "", 3]
)
def test_what_is_no_transform_of_an_image_is_refused(name):
    with pytest.raises(DataError, match="augment: "):
        Augment([name], SHAPE, 4)
    assert v2


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"RandomZoomOut": {"p": 0.01}}, "RandomZoomOut makes"),
        ({"ScaleJitter": {"target_size": [16, 16]}}, "ScaleJitter makes"),
        ({"RandomPosterize": {"bits": 9, "p": 0.01}}, "RandomPosterize fails"),
        ({"RandomSolarize": {"threshold": "abc", "p": 0.01}}, "RandomSolarize fails"),
        ({"MixUp": {"num_classes": 12}}, "MixUp makes labels"),
        ({"CutMix": {"num_classes": 2}}, "CutMix "),
    ],
)
def test_what_would_fail_now_and_then_is_refused_at_once(wanted, words):
    with pytest.raises(DataError, match=f"augment: {words}"):
        Augment(wanted, SHAPE, 4)


def test_what_a_transform_makes_is_looked_at_each_time():
    augment = Augment("RandomInvert", SHAPE, 4)
    augment._single = [("RandomInvert", v2.CenterCrop(8))]
    with pytest.raises(DataError, match="RandomInvert makes"):
        augment.change(images(), 0)


def test_what_is_named_twice_is_done_twice():
    wanted = Augment(["RandomInvert", "RandomInvert"], SHAPE, 4)
    wanted._single = [(name, v2.RandomInvert(p=1.0)) for name, _ in wanted._single]
    assert torch.equal(wanted.change(images(), 0), images())
    assert Augment({"RandomZoomOut": {"p": 0.0}}, SHAPE, 4).change(images(), 0).shape == (6, *SHAPE)
