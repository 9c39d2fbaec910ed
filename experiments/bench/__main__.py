"""``python -m experiments.bench SUITE --out DIR [--rounds N] [--quick]``"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

HAVE_PARTS = ("solvers", "models", "paper")
SUITES = ("solvers", "rules", "reversible", "models", "training", "paper", "sharding")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("suite", choices=(*SUITES, "all"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds (default 30)")
    parser.add_argument("--quick", action="store_true", help="a tiny run, to test it")
    parser.add_argument(
        "--only",
        type=lambda names: tuple(names.split(",")),
        help="parts of the suite, separated by commas: " + ", ".join(HAVE_PARTS),
    )
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1; got {options.rounds}")
    if options.only is not None:
        if options.suite not in HAVE_PARTS:
            parser.error(f"--only goes with {', '.join(HAVE_PARTS)}; got {options.suite}")
        module = importlib.import_module(f"experiments.bench.{options.suite}")
        parts = module.parts(options.quick)
        if unknown := set(options.only) - set(parts):
            parser.error(f"--only takes some of {', '.join(parts)}; got {', '.join(unknown)}")
    return options


def main() -> None:
    """Run the suite, a module of this package."""
    options = parse()
    chosen = {} if options.only is None else {"only": options.only}
    for suite in SUITES if options.suite == "all" else (options.suite,):
        module = importlib.import_module(f"experiments.bench.{suite}")
        module.run(
            out=options.out / suite,
            rounds=2 if options.quick else options.rounds,
            quick=options.quick,
            **chosen,
        )


if __name__ == "__main__":
    main()
