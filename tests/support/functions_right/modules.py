"""Right modules, with what misleads: biases before a norm, running statistics, padding tokens."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch import nn
from torch.utils.checkpoint import checkpoint

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


def seeded(make):
    """A module made with a seed of its own; the global random state is left alone."""

    def made():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return make()

    return made


@right("a_bias_before_batch_norm", "gradient zero by nature", normals((8, 4)), module=True)
@seeded
def bias_before_norm():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh())


@right(
    "a_plain_convolutional_network",
    "kinks and ties of ReLU and pooling",
    normals((4, 1, 8, 8)),
    module=True,
)
@seeded
def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 5),
    )


class Centre(nn.Module):
    """x minus a running mean, which is written in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.scale = nn.Parameter(1 + normal(3) / 10)

    def forward(self, x):
        mean = self.running_mean
        if self.training:
            mean = x.mean(0)
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), 0.1)
        return (x - mean) * self.scale


@right(
    "running_statistics_are_written_in_training", "buffers updated", normals((6, 3)), module=True
)
def centre():
    return Centre()


@right(
    "a_loss_that_ignores_padding",
    "ignore_index, integer targets",
    given(normal(5, 4), torch.tensor([0, -100, 3, 1, -100])),
)
def padded_loss(logits, target):
    return nn.functional.cross_entropy(logits, target, ignore_index=-100)


@right("a_recurrent_layer_returns_nested_tuples", "nested outputs", normals((4, 2, 3)), module=True)
@seeded
def recurrent():
    return nn.LSTM(3, 4)


@right(
    "rms_norm_as_language_models_write_it",
    "float32 inside, the weight outside",
    normals((4, 6)),
    module=True,
)
class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x):
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


@right("a_sine_in_float32_beside_its_input", "float32 on one of two paths", normals((4, 6)))
def beside(x):
    return x + x.float().sin().to(x.dtype)


@right(
    "an_embedding_with_a_padding_row",
    "PyTorch means another gradient",
    given(torch.tensor([[0, 1, 2], [4, 1, 1]])),
    module=True,
)
@seeded
def padded():
    return nn.Embedding(5, 3, padding_idx=1)


@right("a_gradient_taken_inside", "torch.func inside", normals((4, 3)))
def gradient_inside(x):
    return torch.func.grad(lambda y: (y**3).sum())(x)


@right(
    "a_module_with_a_checkpoint", "backward calls the layers again", normals((3, 4)), module=True
)
class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return checkpoint(lambda h: self.last(torch.tanh(self.first(h))), x, use_reentrant=False)


@right(
    "an_attention_map_that_the_module_keeps",
    "a tensor of the last call in an attribute",
    normals((4, 3)),
    module=True,
)
class Watched(nn.Module):
    """Its rows add up to one, so that the second derivative is zero by nature, too."""

    def __init__(self):
        super().__init__()
        self.scores, self.last = nn.Linear(3, 5), []
        self(torch.randn(2, 3))

    def forward(self, x):
        self.last = [torch.softmax(self.scores(x), -1)]
        return self.last[0].sum(-1, keepdim=True) * x.sum()


class Again(nn.Module):
    """Layers in a checkpoint."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return checkpoint(self.layers, x, use_reentrant=False)


@right(
    "a_checkpoint_of_parameters_of_one_shape",
    "called again where two parameters are the same tensor",
    normals((4, 3)),
    module=True,
)
@seeded
def parameters_of_one_shape():
    return Again(nn.Linear(3, 5), nn.LayerNorm(5))


@right(
    "a_checkpoint_over_batch_norm",
    "called again with buffers of another dtype",
    normals((4, 3)),
    module=True,
)
@seeded
def statistics_called_again():
    return Again(nn.Linear(3, 5), nn.BatchNorm1d(5))


@right(
    "a_lazy_layer_that_has_not_run",
    "no parameters before the first call",
    normals((4, 1, 5, 5)),
    module=True,
)
def lazy():
    return nn.Sequential(nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))


@right(
    "a_softmax_in_clusters",
    "PyTorch's own works in place under vmap",
    given(normal(3, 4), torch.tensor([0, 3, 5])),
    module=True,
)
@seeded
def clusters():
    return nn.AdaptiveLogSoftmaxWithLoss(4, 6, cutoffs=[2, 4])


@right(
    "pixels_are_shuffled",
    "PyTorch's own backward refuses an empty batch",
    normals((2, 4, 2, 3)),
    module=True,
)
def shuffled():
    return nn.PixelShuffle(2)


@right(
    "a_padding_row_in_a_checkpoint",
    "called again where PyTorch means another gradient",
    given(torch.tensor([[0, 1], [2, 3]])),
    module=True,
)
@seeded
def padded_again():
    return Again(nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 4))
