"""The thin package that the notebooks share: what they have in common, and nothing that is a lesson of its own."""

import logging
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Where the project lives on GitHub. `tools/move.sh` changes it here, in badges, links and set-up cells.
REPOSITORY = "OWNER/distilbert-remeasured"


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: what was wrong, what is expected, what to do."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the line alone, without the way that it took."""
        return [f"{type(self).__name__}: {self}"]


def reason(error: BaseException) -> str:
    """Why it came about, in a line: an error's last cause says more than what libraries have wrapped around it."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


for _name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao: it names kernels that aren't for here
    logging.getLogger(_name).setLevel(logging.ERROR)
