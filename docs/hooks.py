"""What mkdocs does not do by itself: formulas without a script, and no page that asks a network."""

import html
import logging
import re

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.plugins.jdeq")
_CODE = re.compile(r"(<(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>)", re.DOTALL)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)?)\$", re.DOTALL)
# The template of notebooks draws diagrams by a script from a network; there are none.
_DIAGRAMS = re.compile(r'<script type="module">(?:(?!</script>).)*mermaid.*?</script>', re.DOTALL)
_LOADED = re.compile(r'<(?:script|img|link rel="(?:stylesheet|preload)")[^>]*"(https?://[^"]*)"')


def on_post_page(output: str, page, config) -> str:
    """The page as it is written: LaTeX of notebooks as MathML, which browsers draw themselves."""
    if page.file.src_uri.startswith("notebooks/"):
        parts = _CODE.split(_DIAGRAMS.sub("", output))
        parts[::2] = [_MATH.sub(_mathml, part) for part in parts[::2]]
        output = "".join(parts)
    for address in _LOADED.findall(output):  # a warning ends a strict build
        log.warning(f"{page.file.src_uri} loads {address}; pages must not need a network")
    return output


def _mathml(found: re.Match) -> str:
    block, inline = found.groups()
    return convert(html.unescape(block or inline), display="block" if block else "inline")
