"""``python -m experiments.bench SUITE --out DIR [--rounds N] [--quick]``"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

SUITES = ("solvers", "rules", "reversible", "models", "paper", "sharding")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("suite", choices=(*SUITES, "all"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds (default 30)")
    parser.add_argument("--quick", action="store_true", help="a tiny run, to test it")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1; got {options.rounds}")
    return options


def main() -> None:
    """Run the suite, a module of this package."""
    options = parse()
    for suite in SUITES if options.suite == "all" else (options.suite,):
        module = importlib.import_module(f"experiments.bench.{suite}")
        module.run(
            out=options.out / suite,
            rounds=2 if options.quick else options.rounds,
            quick=options.quick,
        )


if __name__ == "__main__":
    main()
