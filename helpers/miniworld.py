"""The embedded data: a small made-up world, its encyclopedia and its tasks, written as parquet folders in the
schemas of the Hugging Face Hub, so that `load_dataset` and everything after it runs as it would on the real data."""

import hashlib
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetInfo, Features, Sequence, Value
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast

from . import InputError
from .world import WORDS, World, capital
from .worldtasks import rows

VERSION = 2  # raised when the rows change
VOCABULARY = 1_550  # tokens
SOURCES = [Path(__file__).with_name(name) for name in ("miniworld.py", "miniworld.yaml", "world.py", "worldtasks.py")]


def features(data_id: str, config: str) -> Features:
    """The columns' types, as on the Hub."""
    spec = WORDS["hub"][data_id][config]
    columns = {name: Value("string") for name in spec["columns"]}
    if "answers" in columns:
        columns["answers"] = Sequence({"text": Value("string"), "answer_start": Value("int32")})
    if "labels" in spec or config == "stsb":
        columns["label"] = ClassLabel(names=spec["labels"]) if "labels" in spec else Value("float32")
    return Features(columns | ({"idx": Value("int32")} if data_id == "nyu-mll/glue" else {}))


def write(folder: Path, seed: int = 0) -> Path:
    """Write every data set, and the tokenizer, under `folder` in the Hub's layout; at once if they are there.

    Raises:
        InputError: the folder holds something else.
    """
    folder, made = Path(folder).resolve(), hashlib.sha256(f"{VERSION} {seed}".encode())
    for source in SOURCES:
        made.update(source.read_bytes())
    stamp = f"made-{made.hexdigest()[:16]}"
    if (folder / stamp).exists():
        return folder
    if folder.exists() and any(folder.iterdir()) and not any(folder.glob("made-*")):
        raise InputError(f"{folder} holds something else: name a new folder for the mini-world")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    # `datasets` knows a folder that it has cached by the names of its files alone: hence the stamp in each name.
    name = f"{{config}}/{{split}}-00000-of-00001-{stamp[5:]}.parquet".format
    for (data_id, config), splits in rows(seed).items():
        (building / data_id / config).mkdir(parents=True)
        for split, lines in splits.items():
            table = pa.Table.from_pylist(lines, schema=features(data_id, config).arrow_schema)
            pq.write_table(table, building / data_id / name(config=config, split=split))
    for data_id, configs in WORDS["hub"].items():
        files = {
            config: [{"split": split, "path": name(config=config, split=split)} for split in spec["rows"]]
            for config, spec in configs.items()
        }
        card = DatasetCardData(
            configs=[{"config_name": config, "data_files": paths} for config, paths in files.items()]
        )
        infos = {config: DatasetInfo(features=features(data_id, config), config_name=config) for config in configs}
        DatasetInfosDict(infos).to_dataset_card_data(card)
        (building / data_id / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")
    tokenizer(building)
    (building / stamp).touch()
    if any(folder.glob("made-*")) and not (folder / stamp).exists():  # of another seed or version
        shutil.rmtree(folder)
    try:
        building.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(building)
    return folder


def facts(seed: int = 0) -> list[dict]:
    """Cloze probes: each fact's relation, a prompt with one [MASK] and the one token that fills it."""
    probes, per_relation = [], Counter()
    for relation, x, y in World(seed).facts:
        probe = WORDS["relations"][relation].get("probe")
        per_relation[relation] += 1
        if probe and per_relation[relation] <= 5:
            prompt = probe.format(x=x, y="[MASK]")
            probes.append({"relation": relation, "prompt": capital(prompt), "answer": y.name.lower()})
    return probes


def tokenizer(folder: Path) -> BertTokenizerFast:
    """The mini-world's lower-cased WordPiece tokenizer: loaded from `folder`/tokenizer, or trained and saved there."""
    home, text = Path(folder) / "tokenizer", []
    if home.exists():
        return BertTokenizerFast.from_pretrained(home)
    for path in sorted(Path(folder).glob("*/*/*/train-*.parquet")):
        table = pq.read_table(path)
        columns = [field.name for field in table.schema if field.type == pa.string() and field.name != "id"]
        text += [line for column in columns for line in table[column].to_pylist()]
    bare = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bare.normalizer, bare.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    # The trainer numbers "##x" in the order in which it meets them, which differs from run to run and settles ties
    # between merges: named beforehand, they are numbered the same everywhere.
    inner = sorted(set("".join(map(bare.normalizer.normalize_str, text))) - set(" \n"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"##{letter}" for letter in inner)]
    bare.train_from_iterator(
        text, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    trained = BertTokenizerFast(vocab=bare.get_vocab(), do_lower_case=True)
    trained.save_pretrained(home)
    return trained
