"""Networks for `--model.network`: written with manualnn.nn, each a plain torch.nn.Module."""

from torch import Tensor

from manualnn import nn


class CNN(nn.Module):
    """Two convolutions, each normalised, rectified and halved in size, then two matrix products.

        image (C, H, W) -> 5x5 conv, norm, ReLU, pool (n[1], H/2, W/2)
                        -> 5x5 conv, norm, ReLU, pool (n[2], H/4, W/4)
                        -> linear, norm, ReLU, dropout (n[3]) -> linear (num_classes)

    No layer before a norm has a bias: the norm would take it away again.

    Args:
        num_classes: Number of scores; the command line takes it from the data.
        image_shape: (channels, height, width), 4 pixels each way at least; from the data too.
        channels: n[1] and n[2], the channels that the two convolutions put out.
        units: n[3], of the hidden layer.
        dropout: Chance in [0, 1) that a unit of the hidden layer is dropped while training.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        channels: tuple[int, int] = (16, 32),
        units: int = 128,
        dropout: float = 0.5,
    ):
        super().__init__()
        depth, height, width = image_shape
        first, second = channels
        self.conv1 = nn.Conv2d(depth, first, 5, padding=2, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2, bias=False)
        self.norm2 = nn.BatchNorm2d(second)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.hidden = nn.Linear(second * (height // 4) * (width // 4), units, bias=False)
        self.norm3 = nn.BatchNorm1d(units)
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(units, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> scores (B, num_classes)."""
        x = self.pool(self.relu(self.norm1(self.conv1(images))))
        x = self.pool(self.relu(self.norm2(self.conv2(x))))
        x = self.dropout(self.relu(self.norm3(self.hidden(x.flatten(1)))))
        return self.scores(x)
