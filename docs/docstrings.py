"""jdeq's docstrings as the site's renderer reads them; an extension of griffe, see mkdocs.yml.

A docstring is one line with the formula, then paragraphs, then sections "Args:", "Raises:",
"Returns:", "Cost:", "Source:". The renderer tears an unknown one with text on its own line apart,
takes what stands before a colon under "Returns:" for a type, and a line of "Raises:" that is not
indented for another exception. Cross-references in the form of Sphinx become code.
"""

import re

import griffe

OWN = {"Cost", "Deviation", "Returns", "Source"}
_SECTION = re.compile(r"^([A-Z][a-z]+)( \(of a call\))?:(?: +(.*))?$")
_EXCEPTION = re.compile(r"  [A-Z]\w+(, [A-Z]\w+)*: ")
_REFERENCE = re.compile(r":(?:func|class|mod|meth|attr):`~?([^`]+)`")


def readable(text: str) -> str:
    """The docstring with its own sections as paragraphs: "**Cost:** one evaluation of f."

    Under a qualified title, "Args (of a call):", each entry becomes an item of a list.
    """
    lines = _REFERENCE.sub(r"`\1`", text).splitlines()
    out, i = [], 0
    while i < len(lines):
        found = _SECTION.match(lines[i])
        i += 1
        if found is None or not (found[1] in OWN or found[2]):
            out.append("Examples:" if lines[i - 1] == "Example:" else lines[i - 1])
            raises = found is not None and found[1] == "Raises"
            while raises and i < len(lines) and lines[i].startswith("  "):
                goes_on = not _EXCEPTION.match(lines[i])
                out.append("    " * goes_on + lines[i])
                i += 1
            continue
        block = []
        while i < len(lines) and (lines[i].startswith("  ") or not lines[i].strip()):
            block.append(lines[i])
            i += 1
        out += ["", f"**{found[1]}{found[2] or ''}:** {found[3] or ''}".rstrip()]
        listed = found[1] == "Args"
        out += _items(block) if listed else [line.strip() for line in block]
        out.append("")
    return "\n".join(out)


def _items(block: list[str]) -> list[str]:
    """Entries "name: text" with their continuations, as a list."""
    least = min(len(line) - len(line.lstrip()) for line in block if line.strip())
    items = [""]
    for line in block:
        first = line.strip() and len(line) - len(line.lstrip()) == least
        name, colon, rest = line.strip().partition(": ")
        items.append(f"- `{name}`: {rest}" if first and colon else f"    {line.strip()}")
    return items


class Readable(griffe.Extension):
    """Applies `readable` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
