"""Modules under the names that they had: importing one warns, and gives what the module has now."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "manualnn.activation": "manualnn.autograd.activation",
    "manualnn.function": "manualnn.autograd.function",
    "manualnn.ops.convolution": "manualnn.ops.convolutions",
    "manualnn.ops.dropout": "manualnn.ops.dropouts",
    "manualnn.ops.embedding": "manualnn.ops.embeddings",
    "manualnn.ops.linear": "manualnn.ops.fully_connected",
    "manualnn.ops.matmul": "manualnn.ops.products",
    "manualnn.training.use": "manualnn.training.deploy",
}


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        # Level 2 is in importlib's own frames, which Python leaves out when it looks for the importing line.
        message = f"{module.__name__} is now {new}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        public = vars(importlib.import_module(new))
        vars(module).update({name: public[name] for name in public if not name.startswith("__")})


def find_old_names() -> None:
    """From now on an import that finds nothing looks here."""
    sys.meta_path.append(_Moved())
