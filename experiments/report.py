"""RESULTS.md and its pictures: ``python -m experiments.report [--runs DIR]``.

Written whole from the records in experiments/results/runs, a few KB for each run. With
``--runs`` the finished runs that experiments.study trained in DIR become records first, in place
of older ones of the same name. A study that has nothing to show yet is left out. Words, and what is
published, are those of experiments/studies; no other number is written by hand.
"""

import collections
import dataclasses
import pathlib
import shutil
import statistics
import sys
from collections.abc import Sequence

from experiments import workdir
from experiments.cli import command
from experiments.config import ConfigError
from experiments.studies import STUDIES, Study
from experiments.studies import records as kept
from experiments.studies.records import Record
from experiments.studies.study import Listing, Records, Table
from experiments.study import finished
from experiments.tables import markdown, markdown_of, read_rows, write_rows

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
TEXT = HERE / "RESULTS.md"
_HEAD = """\
# Results

Written by `python -m experiments.report` from the records in experiments/results; not to be
edited. The synthetic study is made by `python -m experiments.synthetic`; every other study is
trained by `python -m experiments.study NAME --runs DIR`, and shown by
`python -m experiments.report --runs DIR`; a single run by its command and `--seed S`. Numbers are
means +- standard deviations over seeds (each seed's where they lie far apart), in float32. Times of
solvers and rules: bench/README.md.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    runs: pathlib.Path | None = None
    """Directory of run folders of experiments.study; None: only what is recorded already."""


def run(arguments: Arguments) -> int:
    """Take in new runs, write the text and the pictures."""
    if arguments.runs is not None:
        print(f"{collect(arguments.runs, RESULTS)} runs recorded in {RESULTS / 'runs'}")
    for study in STUDIES:
        draw(study, RESULTS)
    workdir.write_text(TEXT, render(RESULTS))
    print(f"written: {TEXT}")
    return 0


def collect(runs: pathlib.Path, results: pathlib.Path) -> int:
    """Record the finished runs of ``runs`` that a study needs; returns how many there are.

    Raises:
      ConfigError: if there are none, or one is of another configuration or version.
    """
    trainings = {training.folder: training for s in STUDIES for training in s.trainings()}
    found = [name for name in sorted(trainings) if finished(trainings[name], runs)]
    if not found:
        raise ConfigError(f"runs must hold finished runs of experiments.study; {runs} has none")
    for name in found:
        record = results / "runs" / name
        fresh = record.with_name(f"{name}.tmp")  # the old record stays until the new one is whole
        shutil.rmtree(fresh, ignore_errors=True)
        kept.keep(runs / name, fresh)
        shutil.rmtree(record, ignore_errors=True)
        fresh.rename(record)
    return len(found)


def records_of(study: Study, results: pathlib.Path) -> Records:
    """What there is of each variant, by seed."""
    found = {}
    for variant in study.variants:
        folders = [results / "runs" / variant.training(seed).folder for seed in study.seeds]
        runs = [record for folder in folders if (record := kept.read(folder)) is not None]
        if runs:
            found[variant] = runs
    return found


def draw(study: Study, results: pathlib.Path) -> None:
    """The pictures of a study, each with its numbers beside it as CSV; none without records."""
    records = records_of(study, results)
    for picture in study.pictures if records else ():
        if not (rows := picture.rows(records)):
            continue
        folder = results / study.name
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / f"{picture.name}.csv", rows)
        figure = picture.draw(read_rows(folder / f"{picture.name}.csv"))
        figure.savefig(folder / f"{picture.name}.png", metadata={"Software": None})


def render(results: pathlib.Path) -> str:
    """The text of RESULTS.md from the records in ``results``."""
    sections = [_HEAD]
    for study in STUDIES:
        records = records_of(study, results)
        tables = [_table(table, records) for table in study.tables]
        if records and all(tables):
            sections.append(_section(study, records, tables))
    table = results / "synthetic" / "table.md"  # by experiments.synthetic
    if table.exists():
        words = (HERE / "studies" / "synthetic.md").read_text()
        sections.append(words.replace("TABLE\n", table.read_text()))
    return "\n".join(section.rstrip("\n") + "\n" for section in sections)


def _section(study: Study, records: Records, tables: Sequence[str]) -> str:
    parts = [f"## {study.title}", study.about, *tables]
    for picture in study.pictures:
        path = f"results/{study.name}/{picture.name}"
        parts.append(f"![{picture.name}]({path}.png)")
        parts.append(f"{picture.caption} Numbers: {path}.csv.")
    if study.found:
        parts.append(study.found)
    parts.append(_origin(study, records))
    return "\n\n".join(parts) + "\n"


def _table(table: Table | Listing, records: Records) -> str:
    if isinstance(table, Listing):
        return markdown_of(table.rows(records))
    published = any(variant.published for variant in records)
    heads = ["run", *(head for head, _ in table.columns), *(["published"] if published else [])]
    return markdown(
        heads,
        (
            [
                variant.label,
                *(cell(runs) for _, cell in table.columns),
                *([variant.published] if published else []),
            ]
            for variant, runs in records.items()
        ),
    )


def _origin(study: Study, records: Records) -> str:
    """How the runs were made: command, seeds, wall time, commit, machine; which are missing."""
    lacking, rows = [], []
    for variant, runs in records.items():
        wall = statistics.fmean(record.report["wall_seconds"] for record in runs)
        seeds = ", ".join(str(record.report["seed"]) for record in runs)
        rows.append((variant.label, f"`{variant.command}`", seeds, f"{wall:.0f}"))
    commands = markdown(("run", "command", "seeds", "wall time (s)"), rows)
    lines = [f"`python -m experiments.study {study.name} --runs DIR`:", "", commands]
    for variant in study.variants:
        recorded = {record.report["seed"] for record in records.get(variant, ())}
        missing = [str(seed) for seed in study.seeds if seed not in recorded]
        if missing:
            lacking.append(f"{variant.label}, seed {', '.join(missing)}")
    if lacking:
        lines += ["", f"No finished run: {'; '.join(lacking)}."]
    places = collections.Counter(_place(r) for runs in records.values() for r in runs)
    lines += ["", "Wall times are means over seeds, of runs beside others on one machine."]
    lines += [f"{count} runs: {place}." for place, count in sorted(places.items())]
    return "\n".join(lines)


def _place(record: Record) -> str:
    made = record.report["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"commit {made['commit']}, {made['devices']} x {made['device']}, {made['cpu_cores']} CPU "
        f"cores, {versions}, data {record.report['data']}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("report", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
