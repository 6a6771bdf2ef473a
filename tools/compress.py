"""Make a text classifier of one's own smaller: python -m tools.compress MODEL --data dev.csv [--train train.csv] …"""

import sys

from . import command


def main() -> int:
    """The command; its exit code."""
    parser = command.parser("python -m tools.compress", __doc__)
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

    def work() -> None:
        from helpers.compression.own import compress  # takes seconds, and --help does not need it

        made = compress(**vars(given) | {"to": given.to.split(",")})
        print(f"{made.recommendation}\n{made.folder}: model.onnx, use.py, report.md, report.html")

    return command.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
