"""YAML files read with a bound on everything: size, depth, what aliases multiply, values; and the dataclasses they fill."""

from __future__ import annotations

import dataclasses
import math
import typing
from pathlib import Path

import yaml

from evcap.errors import EvcapError
from evcap.text_files import brief, one_line, read_text

LARGEST = 2**20  # bytes
DEEPEST = 20  # collections in one another
LARGEST_INTEGER = 2**53  # beyond it no setting means anything, and libraries below fail in ways of their own
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
    """The settings of one file over those of another: key by key, also within parts; anything else is replaced.

    Parts within parts are replaced too: aliases can make any depth of them.
    """
    parts = [key for key in above if isinstance(above[key], dict) and isinstance(beneath.get(key), dict)]
    return beneath | above | {key: beneath[key] | above[key] for key in parts}


def _load(text: str):
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def from_dict(cls, data, where: str):
    """Build dataclass `cls` from plain data. Raises EvcapError on unknown, missing or wrongly typed keys, and for a number
    below the `least` that a field's metadata names."""
    if not isinstance(data, dict):
        raise EvcapError(f"{where}: expected settings as key: value, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise EvcapError(f"{where}: unknown key {brief(key)}. Known keys: {', '.join(fields)}")
    values = {}
    for name, f in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}")
            if "least" in f.metadata and values[name] < f.metadata["least"]:
                raise EvcapError(f"{where}: {name} is {values[name]}, it must be at least {f.metadata['least']}")
        elif _required(f, data):
            raise EvcapError(f"{where}: key '{name}' is missing")
    return cls(**values)


def _required(setting: dataclasses.Field, data: dict) -> bool:
    if "unless" in setting.metadata:
        return setting.metadata["unless"] not in data
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING


def _convert(hint, value, where: str):
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | None)) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option):
            return from_dict(option, value, where)
        plain = typing.get_origin(option) or option
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            break
        if plain is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if plain is list and isinstance(value, list):
            (item,) = typing.get_args(option)
            return [_convert(item, entry, f"{where}[{number}]") for number, entry in enumerate(value)]
        if plain is dict and isinstance(value, dict):
            kinds = typing.get_args(option)
            return {
                _convert(kinds[0], key, f"{where}: key"): _convert(kinds[1], entry, f"{where}: {brief(key)}")
                for key, entry in value.items()
            }
        if isinstance(value, plain) and plain is not float and not (plain is int and isinstance(value, bool)):
            return value
    raise EvcapError(f"{where}: expected {hint if typing.get_args(hint) else hint.__name__}, found {brief(value)}")


def load_yaml(path: str | Path, cls):
    """Read a YAML file into dataclass `cls`. Raises EvcapError with one line for a missing, broken or unknown setting."""
    return from_dict(cls, read_yaml(path), str(path))
