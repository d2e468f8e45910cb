"""torch.nn.functional as it was when manualnn was imported.

Whoever replaces a function there later means the layers that call it by name. Were it called inside a
hand-written forward, backward would be the derivative of another function.
"""

import types

from torch.nn import functional

F = types.ModuleType(functional.__name__)
vars(F).update(vars(functional))
