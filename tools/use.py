"""What the model in this folder says of a text: python use.py "a text" ["a second text"]; it needs no PyTorch."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers

HERE = Path(__file__).parent
CONFIG = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
TOKENIZER = tokenizers.Tokenizer.from_file(str(HERE / "tokenizer.json"))
TOKENIZER.enable_truncation(CONFIG["longest"])
SESSION = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])


def logits(*texts: str) -> np.ndarray:
    """The model's logits [classes] for one text, or for a pair."""
    one = TOKENIZER.encode(*texts)
    given = {"input_ids": one.ids, "attention_mask": one.attention_mask, "token_type_ids": one.type_ids}
    return SESSION.run(None, {i.name: np.array([given[i.name]]) for i in SESSION.get_inputs()})[0][0]


if __name__ == "__main__":
    said = logits(*sys.argv[1:3])
    shares = np.exp(said - said.max()) / np.exp(said - said.max()).sum()
    print(said[0] if len(said) == 1 else {CONFIG["id2label"][str(n)]: round(float(s), 4) for n, s in enumerate(shares)})
