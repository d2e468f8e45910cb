"""Snake (Ziyin et al. 2020, eq. 3): an activation with a frequency that is learned.

a = z + sin²(α z) / α;  g′ = 1 + sin(2 α z);  ∂a/∂α = z sin(2 α z) / α − sin²(α z) / α²
"""

import torch

from manualnn import Activation, nn


class Snake(Activation, check=True):
    learned = {"alpha": 1.0}

    @staticmethod
    def g(z, alpha):
        return z + torch.sin(alpha * z) ** 2 / alpha

    @staticmethod
    def g_prime(z, alpha):
        return 1 + torch.sin(2 * alpha * z)

    @staticmethod
    def d_alpha(z, alpha):
        return z * torch.sin(2 * alpha * z) / alpha - torch.sin(alpha * z) ** 2 / alpha**2


def train(steps=300):
    """Fits sin 3x on [−2, 2]; returns the first and the last mean squared error."""
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 128)[:, None]
    y = torch.sin(3 * x)
    model, loss = nn.MLP([1, 32, 32, 1], Snake), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        error = loss(model(x), y)
        error.backward()
        optimizer.step()
        losses.append(error.item())
    return losses[0], losses[-1]


if __name__ == "__main__":
    print("mean squared error: {:.4f} -> {:.6f}".format(*train()))
