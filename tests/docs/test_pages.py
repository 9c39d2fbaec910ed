"""The documentation's pages are true: their code runs as printed, their API is complete, and the
numbers of the decision table are those that were measured.
"""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_commands_name_what_exists():
    for page in PAGES.glob("*.md"):
        for module, name in re.findall(r"python -m (experiments[.\w]*) ?(\w*)", page.read_text()):
            assert importlib.util.find_spec(module), (page.name, module)
            if module == "experiments.train" and name != "NAME":
                assert (ROOT / "experiments" / "configs" / f"{name}.py").exists(), name


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
