"""The documentation is true: the code of its pages runs as printed, their API is complete, the
commands that are told anywhere can be run, and the numbers of the decision table were measured.
"""

import configparser
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from experiments import train
from experiments.config import ConfigError

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs" / "pages"
RESULTS = ROOT / "experiments" / "bench" / "results"
WITH_CODE = sorted(page.stem for page in PAGES.glob("*.md") if "```python" in page.read_text())
API = {
    "jdeq": "jdeq",
    "jdeq.linen": "flax",
    "jdeq.nnx": "flax",
    "jdeq.layers": "layers",
    "jdeq.models": "models",
    "jdeq.training": "training",
    "jdeq.data": "data",
    "jdeq.plots": "plots",
}


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE)
def test_code_of_a_page_runs_from_top_to_bottom(page):
    code = "\n".join(blocks(PAGES / f"{page}.md"))
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_pages_with_code_are_found():
    assert {"index", "recipes", "new_solver", "new_rule", "new_model"} <= set(WITH_CODE)


def texts():
    """By name, all text that tells commands to a reader; of a notebook its Markdown."""
    experiments = ROOT / "experiments"
    others = [ROOT / "README.md", experiments / "RESULTS.md"]
    others += [experiments / folder / "README.md" for folder in ("bench", "launch")]
    pages = [*PAGES.glob("*.md"), *others]
    found = {str(page.relative_to(ROOT)): page.read_text() for page in pages}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        markdown = ("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        found[path.name] = "\n\n".join(markdown)
    return found


def commands(text):
    """Module and arguments of the commands of experiments: in fenced and indented blocks, where a
    command is a line, and between backticks, where it may go on in the next one.
    """
    fenced = r"```\w*\n(.*?)```"
    lines = [line for block in re.findall(fenced, text, re.DOTALL) for line in block.split("\n")]
    text = re.sub(fenced, "", text, flags=re.DOTALL)
    lines += re.findall(r"^ {4,}(.*)$", text, re.MULTILINE)
    lines += [inline.replace("\n", " ") for inline in re.findall(r"`([^`]+)`", text)]
    for line in lines:
        if match := re.search(r"python3? -m (experiments[.\w]*)(.*)", line):
            yield match.group(1), shlex.split(match.group(2), comments=True)


PLACES = {"DIR": ["dir"], "S": ["0"], "...": [], "[--field": [], "value": [], "...]": []}
NAMES = {"experiments.train": "digits_mdeq", "experiments.study": "all"}


def parse(module, arguments):
    """Have the command itself read its arguments; it exits where they are wrong."""
    found = importlib.import_module(module)
    if module == "experiments.train":
        train.parse(arguments)
    elif module == "experiments.launch":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(found, "run", lambda command, *_: train.parse(command))
            found.main(arguments)
    elif module == "experiments.bench":
        importlib.import_module("experiments.bench.__main__").parse(arguments)
    elif module == "experiments.study":
        assert found.chosen(tyro.cli(found.Arguments, args=arguments).names)
    else:
        tyro.cli(found.Arguments, args=arguments)


def test_commands_name_what_exists_and_their_arguments_are_read():
    told = {(m, *arguments) for text in texts().values() for m, arguments in commands(text)}
    assert len(told) > 30
    for module, *arguments in sorted(told):
        assert importlib.util.find_spec(module), module
        words = [word for a in arguments for word in PLACES.get(a, [a])]
        words = [NAMES.get(module, word) if word == "NAME" else word for word in words]
        if words and "--help" not in words:  # a command may be named without its arguments
            try:
                parse(module, words)
            except (SystemExit, ConfigError) as error:
                pytest.fail(f"{shlex.join([module, *arguments])}: {error}")


def test_extras_are_installed_from_the_checkout():
    """jdeq is in no index of packages; the extras that are named are those there are."""
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    for name, text in texts().items():
        assert not re.search(r"pip install [^`\n]*\bjdeq\b", text), name
        for named in re.findall(r"'\.\[([\w,]+)\]'", text):
            assert set(named.split(",")) <= set(extras["options.extras_require"]), (name, named)


def public_names(module):
    """``__all__``; without it, what the module imports of its package or defines itself."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    values = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    if hasattr(module, "__path__"):
        imported = re.findall(
            r"^    (\w+),$|^from jdeq\.\S+ import ([^(\n]+)$",
            inspect.getsource(module),
            flags=re.MULTILINE,
        )
        names = {n.strip() for pair in imported for part in pair for n in part.split(",")}
        return names & set(values)
    own = {n for n, v in values.items() if getattr(v, "__module__", None) == module.__name__}
    return own - {"initial_state"}  # a helper of both DEQ modules


@pytest.mark.parametrize("name", API)
def test_api_page_names_all_that_is_public(name):
    module = importlib.import_module(name)
    text = (PAGES / "api" / f"{API[name]}.md").read_text()
    # A function in a module of its name is named twice, or the module would be documented.
    found = re.findall(rf"^::: {re.escape(name)}\.(\w+)(?:\.(\w+))?$", text, flags=re.MULTILINE)
    assert {first for first, _ in found} == public_names(module)
    for first, second in found:
        twin = importlib.util.find_spec(f"{name}.{first}") if hasattr(module, "__path__") else None
        assert bool(second) == (twin is not None), first
        assert second in ("", first)


def test_every_diagnostic_is_on_a_page():
    pages = "".join((PAGES / "api" / f"{name}.md").read_text() for name in ("jdeq", "types"))
    found = re.findall(r"^::: jdeq\.(?:diagnostics\.)?(\w+)$", pages, flags=re.MULTILINE)
    assert set(importlib.import_module("jdeq.diagnostics").__all__) <= set(found)


def rows(text):
    """Cells of every row of a Markdown table, under the heading before it."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| "):
            first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            found[heading, first] = rest
    return found


@pytest.mark.parametrize(
    ("heading", "results"), [("Solvers", "solvers"), ("Gradient rules", "rules")]
)
def test_decision_table_has_the_measured_numbers(heading, results):
    measured = rows((RESULTS / f"{results}_py311.md").read_text())
    table = rows((PAGES / "choosing.md").read_text())
    shown = {entry: cells for (under, entry), cells in table.items() if under == heading}
    entries = [entry for entry in shown if entry.startswith("`")]
    assert len(entries) >= 5
    columns = shown["solver" if results == "solvers" else "rule"]
    for entry in entries:
        name = entry.strip("`").replace("()", "")
        for column, value in zip(columns, shown[entry], strict=True):
            problem, _, what = column.partition(", ")
            if problem not in ("A", "B"):
                continue
            group = f"{problem}, value_and_grad"
            titles = measured[group, "entry"]
            candidates = [name, f"jdeq {name}", f"jdeq {name.replace('(depth=8)', ' depth 8')}"]
            cells = next(measured[group, n] for n in candidates if (group, n) in measured)
            assert value == cells[titles.index(what)], (entry, column)
