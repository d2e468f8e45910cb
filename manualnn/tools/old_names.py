"""Names that ``manualnn.check``, a function, was said to have: they stand in manualnn itself."""

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def with_old_names(**names: Any) -> Callable[[F], F]:
    """A decorator: the function, of which each of these is an attribute, with a DeprecationWarning."""
    return lambda function: Named(function, names)  # type: ignore[return-value]


class Named:
    """A function that has attributes which warn; a plain one has no place for that."""

    def __init__(self, function: Callable[..., Any], names: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function, self._names = function, names

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
        raise AttributeError(f"{vars(self).get('__name__')} has no attribute {name!r}")

    def __reduce__(self) -> str:  # pickled, and copied, as a function: by its name
        return self.__qualname__

    def __repr__(self) -> str:
        return repr(self._function)
