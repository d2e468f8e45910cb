"""From formulas to ``autograd.Function``s: the base of every op, its faces, and activations."""
