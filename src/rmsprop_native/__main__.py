"""The command line: `python -m rmsprop_native` shows the configuration; bench and check are its other commands."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from rmsprop_native._bench import bench
from rmsprop_native._check import SETS, check, sets_here
from rmsprop_native.runtime import show_config

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; what cannot be run ends the process with exit status 2, as argparse does."""
    parser = argparse.ArgumentParser(prog="python -m rmsprop_native", description="The RMSProp step for NumPy.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("config", help="show what this installation is and how it runs; so does no command at all")
    timing = commands.add_parser("bench", help="measure the step here beside NumPy, and Numba and torch if installed")
    timing.add_argument("--seconds", type=float, default=6.0, help="about how long to measure (default: %(default)s)")
    commands.add_parser("check", help="compare the bits of every instruction set here with those of the specification")
    arguments = parser.parse_args(argv)
    if arguments.command == "check":
        wrong = check()
        left_out = "" if len(sets_here()) == len(SETS) else ", without bfloat16, which needs ml_dtypes"
        print("".join(f"other bits: {what}\n" for what in wrong) or f"all bits as specified{left_out}\n", end="")
        sys.exit(1 if wrong else 0)
    if arguments.command != "bench":
        show_config()
        return
    try:
        bench(arguments.seconds)
    except ValueError as error:
        timing.error(str(error))


if __name__ == "__main__":
    main()
