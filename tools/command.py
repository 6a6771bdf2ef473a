"""What the commands have in common: how they are asked, and how they end."""

import argparse
import sys
from collections.abc import Callable

from helpers import InputError
from helpers.measure.sweep import SweepError


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """A parser that takes no part of an option's name for it, and says in one line what it can't take."""
    made = argparse.ArgumentParser(name, description=about.partition("\n")[0], allow_abbrev=False)
    made.error = lambda message: made.exit(2, f"error: {message}; see --help\n")
    return made


def exit_code(work: Callable[[], int | None]) -> int:
    """Do it. 0: all went well, 1: something failed on the way, 2: what was asked for makes no sense; it is told why."""
    try:
        return work() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SweepError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:  # a folder that cannot be written, a full disk
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
    return 1
