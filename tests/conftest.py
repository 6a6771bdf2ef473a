"""What the tests share: a teacher small enough to train in seconds, and text for it."""

import ast
import os

os.environ.setdefault("HF_HUB_OFFLINE", "0" if "HF_ENDPOINT" in os.environ else "1")  # no network in the tests

import helpers  # noqa: F401, I001 (before transformers, whose imports it keeps quiet)
import pytest

# What takes seconds to import is imported where it is used: the process that hands out tests to others, and only then
# starts them, needs none of it.


def pytest_collection_modifyitems(items):
    """Puts the file that runs the series first: nothing takes as long, and whoever gets it last ends last."""
    first = {item.path for item in items if item.get_closest_marker("series")}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """PyTorch's threads in a test that doesn't ask for more: tests run side by side."""
    import torch

    torch.set_num_threads(1)


WORDS = ["the", "a", "river", "town", "runs", "through", "sings", "baker", "of", "old", "bridge", "stone", "cold"]
WORDS += ["morning", "under", "every", "lantern", "hums"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """BERT's special tokens and forty words."""
    from transformers import BertTokenizer

    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("\n".join([*special, *WORDS, *(f"word{i}" for i in range(40 - len(WORDS)))]) + "\n")
    return BertTokenizer(str(path))


@pytest.fixture
def teacher(tokenizer):
    """A random BERT of 4 layers whose token types matter, so that leaving them out would show."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms start at 0 and 1, which would hide a mix-up
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.bert.embeddings.token_type_embeddings.weight.normal_(std=0.5)
    return model


@pytest.fixture
def cut(tokenizer) -> list:
    """Blocks of different lengths."""
    import numpy as np

    from helpers.data import encoding

    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, size)) for size in random.integers(5, 60, size=40)]
    return encoding.blocks(texts, tokenizer, 24)[0]


@pytest.fixture(scope="session")
def frame():
    """The newest records of an experiment as a table: `frame(space, "glue")`; the whole ones are in `record`."""
    import pandas as pd

    from helpers.measure import records

    def read(space, experiment):
        found = records.Evidence(space)(experiment)
        return pd.DataFrame([record["unit"] | record["metrics"] | {"record": record} for record in found])

    return read


@pytest.fixture
def one_by_one():
    """Pseudo-log-likelihoods by definition: `one_by_one(model, ids, tokenizer, within_word)`, one copy at a time."""
    import numpy as np
    import torch

    asked = {}  # a copy that both ways need is read once

    def hidden(model, ids, tokenizer, within_word: bool) -> np.ndarray:
        found = np.full(len(ids), np.nan)
        words = tokenizer.convert_ids_to_tokens(ids.tolist())
        head = getattr(model, "vocab_transform", None) or model.cls  # it scores each token by itself: one is enough
        for place in range(1, len(ids) - 1):
            copied, end = ids.copy(), place + 1
            while within_word and words[end].startswith("##"):
                end += 1
            copied[place:end] = tokenizer.mask_token_id
            if (copy := (model, place, ids[place], copied.tobytes())) not in asked:
                with torch.no_grad(), head.register_forward_pre_hook(lambda _, given, at=place: (given[0][:, [at]],)):
                    logits = model(input_ids=torch.tensor(copied)[None], attention_mask=torch.ones(1, len(ids))).logits
                asked[copy] = logits[0, 0].double().log_softmax(-1)[ids[place]].item()
            found[place] = asked[copy]
        return found

    return hidden


@pytest.fixture(scope="session")
def page():
    """What a notebook's own cells define: `page("05_perplexity", "stages_in_words")`, after its imports."""
    import nbformat

    def defined(name: str, *wanted: str) -> list:
        made = {}
        for cell in nbformat.read(helpers.ROOT / f"notebooks/{name}.ipynb", as_version=4).cells:
            if cell.cell_type != "code" or cell.source.lstrip().startswith(("!", "%")) or "\n%" in cell.source:
                continue
            for node in ast.parse(cell.source).body:
                names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
                targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
                names += [t.id for t in targets if isinstance(t, ast.Name) and t.id.isupper()]
                if (
                    isinstance(node, ast.Import | ast.ImportFrom)
                    or set(names) & {*wanted}
                    or any(map(str.isupper, names))
                ):
                    exec(compile(ast.unparse(node), name, "exec"), made)
        return [made[one] for one in wanted]

    return defined
