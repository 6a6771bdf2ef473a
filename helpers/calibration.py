"""Models for OpenVINO in 8 bits, whose inputs' scales are fixed ahead on calibration rows (NNCF); an optional extra.

What quantizes inputs as they come must look at them first, for each product anew; fixed scales are free.
"""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import edge

LABELS = {"openvino_int8": "int8, calibrated (OpenVINO)"}
ROWS = 300  # NNCF's own default


def why_not() -> str | None:
    """Why nothing can be calibrated here; None if it can."""
    absent = [name for name in ("openvino", "nncf") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed, an optional extra: pip install openvino nncf" if absent else None


def quantize(source: Path, folder: Path, examples: Sequence[dict]) -> None:
    """An exported model (ONNX) in 8 bits for OpenVINO: `folder`/model.xml and model.bin, with the tokenizer.

    `examples`: input_ids, attention_mask and token_type_ids [tokens] each; from what the model makes of them come the
    ranges of all inputs.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(edge.only(source))
    wanted = [given.any_name for given in model.inputs]

    def feed(example: dict) -> dict[str, np.ndarray]:
        return {name: np.asarray(example[name], dtype=np.int64)[None] for name in wanted}

    rows = nncf.Dataset(examples, feed)

    def write(path: Path) -> None:
        logger = logging.getLogger("nncf")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it lists what it leaves alone
        try:
            made = nncf.quantize(model, rows, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(examples))
        finally:
            logger.setLevel(level)
        openvino.save_model(made, path.with_suffix(".xml"), compress_to_fp16=False)

    edge.make(folder, "openvino_int8", source, write)
