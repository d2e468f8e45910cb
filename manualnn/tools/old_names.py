"""Names of the documentation that have changed: the old ones work, with a DeprecationWarning."""

import functools
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
LINES = {"bytes kept for backward": "bytes saved for backward"}


def renamed(old: str, new: str) -> Any:
    """The attribute ``old`` of a class: it is ``new`` now."""

    def get(self: Any) -> Any:
        message = f"{type(self).__name__}.{old} is called {new} now"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(get, doc=f"The old name of ``{new}``.")


def line_names(names: Iterable[str], stacklevel: int) -> list[str]:
    """What these lines of a check are called now; ``stacklevel`` is that of the warning."""
    found = []
    for name in names:
        if name in LINES:
            message = f"the line {name!r} is called {LINES[name]!r} now"
            warnings.warn(message, DeprecationWarning, stacklevel)
        found.append(LINES.get(name, name))
    return found


def with_old_names(**names: Any) -> Callable[[F], F]:
    """A decorator: the function, of which each of these is an attribute, with a DeprecationWarning."""
    # To a checker it is the function itself, with its signature.
    return lambda function: FunctionWithOldNames(function, names)  # type: ignore[return-value]


class FunctionWithOldNames:
    """A function that has attributes which warn; a plain one has no place for that."""

    def __init__(self, function: Callable[..., Any], names: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function, self._names = function, names

    @property  # type: ignore[misc]  # mypy takes __class__ for a plain attribute
    def __class__(self) -> type:  # to inspect, and so to help(), it is a function
        return types.FunctionType

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        # As a function; help() takes what has it for one.
        return self if instance is None else types.MethodType(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name in vars(self).get("_names", ()):
            message = f"manualnn.{self.__name__}.{name} is called manualnn.{name} now"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return self._names[name]
        function = vars(self).get("_function")
        if name.startswith("__") and hasattr(function, name):  # __code__, __defaults__
            return getattr(function, name)
        raise AttributeError(f"{vars(self).get('__name__')} has no attribute {name!r}")

    def __reduce__(self) -> str:  # pickled, and copied, as a function: by its name
        return self.__qualname__

    def __repr__(self) -> str:
        return repr(self._function)
