"""YAML files read with a bound on everything: size, depth, what aliases and merges multiply, what a value may be."""

from __future__ import annotations

from pathlib import Path

import yaml

from evcap.errors import EvcapError
from evcap.text_files import brief, one_line, read_text

LARGEST = 2**20  # bytes
DEEPEST = 20  # collections in one another
MOST_MERGED = 1000  # keys that merges (<<) bring into one mapping


class _Loader(yaml.SafeLoader):
    """Plain data only. Aliases stay references to one object, so that a nest of them takes no more room than its text."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent, index):
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels", self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key is no text", key.start_mark)
            if key.value in seen:  # the last would count, and nobody could tell which is meant
                raise yaml.composer.ComposerError(None, None, f"key {brief(key.value)} is there twice", key.start_mark)
            seen.add(key.value)
        return node

    def flatten_mapping(self, node):
        super().flatten_mapping(node)
        if len(node.value) > MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, f"merges more than {MOST_MERGED} keys", node.start_mark)


def read_yaml(path: str | Path):
    """The plain data of a YAML file. Raises EvcapError with one short line for a file that cannot be read or is not YAML."""
    text = read_text(path, LARGEST, "valid YAML")
    try:
        return _load(text)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # SafeLoader checks neither the digits of numbers nor the days of dates before it makes them
        raise EvcapError(f"{path} is not valid YAML: {one_line(error)}") from None


def overlaid(beneath: dict, above: dict) -> dict:
    """The settings of one file over those of another: key by key, also within parts; anything else is replaced."""
    parts = [key for key in above if isinstance(above[key], dict) and isinstance(beneath.get(key), dict)]
    return beneath | above | {key: overlaid(beneath[key], above[key]) for key in parts}


def _load(text: str):
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
