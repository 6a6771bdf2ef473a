"""Make a text classifier of one's own smaller: python -m tools.compress MODEL --data dev.csv [--train train.csv] …"""

import argparse
import sys

from helpers import InputError


def main() -> int:
    """0 if a model was handed over, 2 if what was given cannot be taken, 1 if something failed on the way."""
    parser = argparse.ArgumentParser(prog="python -m tools.compress", description=__doc__)
    parser.error = lambda message: parser.exit(2, f"error: {message}; see --help\n")
    parser.add_argument("model", help="Hub id or folder of a text classifier")
    parser.add_argument("--data", required=True, help="rows to measure on: CSV, TSV, JSON lines, parquet, or ID:CONFIG")
    parser.add_argument("--train", help="rows to learn from again; without, nothing is cut or trimmed")
    parser.add_argument("--text", default="sentence", help="column of the text (sentence)")
    parser.add_argument("--pair", help="column of a second text")
    parser.add_argument("--label", default="label", help="column of the label (label)")
    parser.add_argument("--to", default="int8,bf16,cut50,trimmed", help="ways to try (int8,bf16,cut50,trimmed)")
    parser.add_argument("--out", default="compressed", help="folder for what is made (compressed)")
    parser.add_argument("--goal", default="no more than 1 point", help="how much of the score may go")
    parser.add_argument("--threads", type=int, default=1, help="to ask with (1)")
    given = parser.parse_args()
    from helpers.compression.own import compress  # takes seconds, and --help does not need it
    from helpers.measure.sweep import SweepError

    try:
        made = compress(**vars(given) | {"to": given.to.split(",")})
    except (InputError, SweepError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"{made.recommendation}\n{made.folder}: model.onnx, use.py, report.md, report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
