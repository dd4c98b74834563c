"""Decode a file's YAML leniently, as kube-proxy decodes v1alpha1, with warnings.

Unknown fields, all values but the last of a field that is set twice, and all documents but the
first are ignored. Field names are case-sensitive. Facts: kube-proxy's loadConfig, and the json
serializer of apimachinery without Strict.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import yaml
from yaml.constructor import SafeConstructor

from pyproxy.config.schema import ZERO, KubeProxyConfiguration
from pyproxy.errors import one_line

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "tag:yaml.org,2002:merge"
_NAME_LIMIT = 100
_WARNINGS = 20
_HARMLESS = frozenset({"metadata", "resourceContainer"})
"""Fields that no version needs: kind's files have the first, those of old clusters the second."""

_NODES = 500_000
"""The most nodes of a document after its aliases are replaced; a file of 1 MiB without aliases has
fewer."""


class Decoded(msgspec.Struct, frozen=True):
    """A document's known fields that are not null, and a warning for each ignored part.

    `mistakes` are the warnings about parts that may change what the author wanted.
    """

    tree: Any
    warnings: tuple[str, ...]
    mistakes: tuple[str, ...] = ()
    has_further: bool = False


def decode(data: bytes) -> Decoded:
    """Decode the first document of a file. Raises yaml.YAMLError, RecursionError, ValueError."""
    loader = _Loader(data)
    try:
        if not loader.check_node():
            return Decoded(None, ())
        node = loader.get_node()
        further = "" if loader.check_event(yaml.StreamEndEvent) else _line(loader.peek_event())
    finally:
        loader.dispose()
    decoder = _Decoder()
    _check_size(node, {})
    tree = decoder.value(node, KubeProxyConfiguration, "")
    if further:
        decoder.warn(f"{further}: another document begins here: only the first one counts")
    warnings = tuple(decoder.warnings())
    mistakes = tuple(each for each in warnings if each not in decoder.harmless)
    return Decoded(tree, warnings, mistakes, has_further=bool(further))


class _Decoder:
    """Decodes the nodes of one document, with a bounded number of warnings."""

    def __init__(self) -> None:
        self._constructor = SafeConstructor()
        self._warnings: list[str] = []
        self._unnamed = 0
        self.harmless: set[str] = set()

    def warn(self, text: str) -> None:
        """Add a warning, or count it if there are many."""
        if self.is_full:
            self._unnamed += 1
        else:
            self._warnings.append(text)

    @property
    def is_full(self) -> bool:
        """Whether further warnings are only counted."""
        return len(self._warnings) >= _WARNINGS

    def warnings(self) -> Iterator[str]:
        """Yield the warnings, and their number beyond the first ones."""
        yield from self._warnings
        if self._unnamed:
            yield f"{self._unnamed:,} more unknown or repeated fields are ignored"

    def value(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """Return the value of a field of type `kind`, which the schema checks later."""
        if isinstance(node, yaml.MappingNode) and _is_section(kind):
            return self._section(node, kind, path)
        # tuple[Module, ...] is a list of sections.
        item = next(iter(get_args(kind)), None)
        if isinstance(node, yaml.SequenceNode) and _is_section(item):
            return [
                self.value(each, item, f"{path}[{index}]") for index, each in enumerate(node.value)
            ]
        self._warn_of_repeated(node, path)
        try:
            return self._constructor.construct_document(node)
        except (ValueError, ArithmeticError, LookupError, AttributeError, yaml.YAMLError) as error:
            # PyYAML raises any of these for a value that does not fit its tag, such as !!bool x.
            # Their texts may repeat a number of thousands of digits, or a part of another file.
            raise ValueError(f"{_line(node)}: {path} has a value that no field has") from error

    def _warn_of_repeated(self, node: yaml.Node, path: str) -> None:
        """Warn of the repeated keys of a map, such as featureGates; the last value counts."""
        if not isinstance(node, yaml.MappingNode):
            return
        lines: dict[str, str] = {}
        for key, _, merged in _entries(node):
            if merged or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                full = one_line(f"{path}.{key.value}", _NAME_LIMIT)
                self.warn(f"{_line(key)}: {full} replaces its value in {lines[key.value]}")
            lines[key.value] = _line(key)

    def _section(self, node: yaml.MappingNode, kind: Any, path: str) -> dict[str, Any]:
        fields = {each.encode_name: each.type for each in msgspec.structs.fields(kind)}
        found: dict[str, Any] = {}
        lines: dict[str, str] = {}
        for key, value, merged in _entries(node):
            name = _name(key)
            full = f"{path}.{name}" if path else name
            if name not in fields:
                if not merged:
                    self._warn_of_unknown(key, full, fields)
                continue
            if not merged:
                if name in lines:
                    self.warn(f"{_line(key)}: {full} replaces its value in {lines[name]}")
                lines[name] = _line(key)
            found[name] = self.value(value, fields[name], full)
        return {name: value for name, value in found.items() if value is not None}

    def _warn_of_unknown(self, key: yaml.Node, path: str, fields: dict[str, Any]) -> None:
        # The search for a similar name is the expensive part.
        near = "" if self.is_full else _nearest(path, fields)
        hint = f": did you mean {near}?" if near else ""
        text = f"{_line(key)}: unknown field {one_line(path, _NAME_LIMIT)} is ignored{hint}"
        if path in _HARMLESS:
            self.harmless.add(text)
        self.warn(text)


def _entries(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
    """Yield keys and values, those of merged mappings (`<<`) first, with true for them."""
    for key, value in node.value:
        if key.tag == _MERGE:
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            # Of several merged mappings the first one counts.
            for source in reversed(sources):
                if not isinstance(source, yaml.MappingNode):
                    raise ValueError(f"{_line(key)}: only maps can be merged with <<")
                yield from ((inner, each, True) for inner, each, _ in _entries(source))
    yield from ((key, value, False) for key, value in node.value if key.tag != _MERGE)


def _name(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise ValueError(f"{_line(key)}: the name of a field is not text")
    text: str = key.value
    return text


def _line(at: Any) -> str:
    return f"line {at.start_mark.line + 1}"


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of nodes with aliases replaced. Raises ValueError if there are too many."""
    known = sizes.get(id(node))
    if known is not None:
        if not known:
            raise ValueError(f"{_line(node)}: an alias is inside its own anchor")
        return known
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.CollectionNode):
        for each in node.value:
            for child in each if isinstance(each, tuple) else (each,):
                size += _check_size(child, sizes)
    if size > _NODES:
        raise ValueError(f"{_line(node)}: aliases repeat more than {_NODES:,} values")
    sizes[id(node)] = size
    return size


def _nearest(path: str, fields: dict[str, Any]) -> str:
    """Return the path of a field with a similar name, empty for none."""
    section, _, name = path.rpartition(".")
    prefix = f"{section}." if section else ""
    folded = name.casefold()
    for known in fields:
        if known.casefold() == folded:
            return prefix + known
    for known in fields:
        if len(name) > 2 and known.casefold().startswith(folded):
            return prefix + known
    elsewhere = {each.rpartition(".")[2]: each for each in reversed(tuple(ZERO))}
    if name in elsewhere:
        return elsewhere[name]
    paths = {**elsewhere, **{each: prefix + each for each in fields}}
    similar = difflib.get_close_matches(name[:_NAME_LIMIT], paths, 1)
    return paths[similar[0]] if similar else ""
