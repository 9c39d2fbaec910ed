"""What devices tell each other in a compiled program: every collective of its HLO text."""

import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:to_apply|body|condition|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")


class Collective(NamedTuple):
    """One operation; its arrays are those of one device."""

    kind: str
    type: str  # of the result, as HLO writes it
    in_loop: bool  # whether a while loop reaches it

    @property
    def bytes(self) -> int:
        """Of the result, on each device."""
        return sum(_bytes(*match) for match in _ARRAY.findall(self.type))


def collectives(program: str) -> list[Collective]:
    """All of ``compiled.as_text()``, those that loops reach first."""
    lines, name = {}, ""
    for line in program.splitlines():
        if start := _COMPUTATION.match(line):
            name = start.group(1)
        lines.setdefault(name, []).append(line)

    def called(line: str) -> Iterator[str]:
        yield from _CALLED.findall(line)
        for names in _BRANCHES.findall(line):
            yield from (name.strip().lstrip("%") for name in names.split(","))

    waiting = [c for body in lines.values() for x in body if " while(" in x for c in called(x)]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [child for line in lines.get(name, []) for child in called(line)]
    found = [
        Collective(kind, type_, name in reached)
        for name, body in lines.items()
        for line in body
        for type_, kind in _OPERATION.findall(line)
    ]
    return sorted(found, key=lambda collective: not collective.in_loop)


def _bytes(kind: str, bits: str, shape: str) -> int:
    size = 1
    for axis in shape.split(","):
        size *= int(axis) if axis else 1
    return size if kind == "pred" else size * int(bits or 0) // 8
