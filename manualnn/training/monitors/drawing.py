"""From numbers to a picture in TensorBoard."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Told apart by those who see few colours, too (Okabe and Ito 2008).
BLUE, ORANGE, RED, GREY, DARK = "#0072B2", "#E69F00", "#D55E00", "#BBBBBB", "#444444"
BROWN = "#9C6B00"  # orange letters are too pale to read


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """A figure of its own, which pyplot knows nothing of: nothing to close, no window, no global state."""
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """(height, width, 3) uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
