"""How YAML is read: named configurations, those beside checkpoints, and values of options alike.

What a few bytes would blow up, by aliases of aliases, is refused before anything is made of it. `off`,
`no`, `on` and `yes` are words to an option of words, and still true or false to one of these.
"""

from collections import Counter
from unittest.mock import patch

import yaml
from jsonargparse import _loaders_dumpers, get_loader, set_loader

LARGEST = 1 << 20  # bytes, and values, of a configuration; a run's has some thousands
DEEPEST = 100  # values in values
_BOOL = "tag:yaml.org,2002:bool"


class _Guarded(_loaders_dumpers.get_yaml_default_loader()):
    def get_single_data(self):
        try:
            return super().get_single_data()
        except RecursionError as error:
            raise yaml.YAMLError("its values are in one another without an end") from error

    def construct_document(self, node: yaml.Node):
        _check(node)
        return super().construct_document(node)


class _Words(_Guarded):
    """For what is not known yet to be true or false."""

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag != _BOOL or first in "tTfF"]
        for first, known in _Guarded.yaml_implicit_resolvers.items()
    }


def _check(document: yaml.Node) -> None:
    """YAMLError: too large once its aliases are written out, or too deep; a key that is there twice."""
    waiting, count = [(document, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEEPEST:
            raise yaml.YAMLError("its values are in one another too deeply, or without an end")
        if count > LARGEST:
            raise yaml.YAMLError("it is too large")
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            keys = Counter((k.tag, k.value) for k, _ in inner if isinstance(k, yaml.ScalarNode))
            if twice := next((name for (_, name), times in keys.items() if times > 1), None):
                raise yaml.YAMLError(
                    f"{twice} is there twice, in line {node.start_mark.line + 1} or below"
                )
            inner = [part for pair in inner for part in pair]
        if not isinstance(node, yaml.ScalarNode):
            waiting += [(part, depth + 1) for part in inner]


_read = get_loader("yaml")


def _read_words(text: str):
    with patch.object(_loaders_dumpers, "yaml_default_loader", _Words):
        return _read(text)


_loaders_dumpers.yaml_default_loader = _Guarded
set_loader("yaml", _read_words, (yaml.YAMLError,))
