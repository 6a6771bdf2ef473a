"""Share a model of this project, with a card made from its records: python -m tools.share CHECKPOINT --to OWNER/NAME.

CHECKPOINT is a folder in `checkpoints/` of a store, or what `tools.compress` handed over. Without --push, the card is
shown, checked, and nothing leaves this machine.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from helpers import ROOT, InputError
from helpers.measure import metrics, records

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

GIVEN = ("*.safetensors", "*.onnx", "*.json", "*.txt", "*.py", "report.*")  # files that are shared, beside the card
TASKS = {"distillation": "fill-mask", "ablation": "fill-mask", "squad": "question-answering"}
DATA = {"imdb": "stanfordnlp/imdb", "squad": "rajpurkar/squad", "glue": "nyu-mll/glue"}
LOWER = ("masked_lm_loss", "kl_to_teacher", "masked_token_accuracy")  # of a pretrained model
OWN = ("accuracy", "f1", "matthews_correlation", "pearson", "spearman", "exact_match", "score")  # of a fine-tuned one
PIPE = 'from transformers import pipeline\n\nprint(pipeline("{kind}", model="{to}")("{text}"))'
TEXTS = {"fill-mask": "The town lies on a [MASK].", "text-classification": "Not bad at all."}
READER = """from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{to}")
texts = "Who wrote it?", "It was written by Ada."
given = tokenizer(*texts, return_tensors="pt", return_token_type_ids=False)
said = AutoModelForQuestionAnswering.from_pretrained("{to}")(**given)
first, last = said.start_logits.argmax(), said.end_logits.argmax()
print(tokenizer.decode(given["input_ids"][0, first : last + 1]))"""


def evidence(folder: Path) -> list[dict]:
    """The records that tell of a checkpoint; InputError if there are none, so that no card would be true."""
    from helpers.models import checkpoints

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    made, resolved = checkpoints.file_hash(folder), folder.resolve()
    stores = [resolved.parent.parent.parent / "results" / resolved.parent.name]
    stores.append(resolved.with_name(f"{resolved.name}.work") / "results")
    paths = [path for store in stores for path in sorted(store.glob("**/records/*/*.json"))]
    found = [one for one in map(records.read_record, paths) if one["details"].get("checkpoint") == made]
    found = [one for one in found if one["experiment"] in (*TASKS, *DATA, "own")]
    if not found:
        raise InputError(f"{folder}: no record tells of it ({made}): share what this project has trained and measured")
    return found


def measured(record: dict) -> list[tuple[str, float, tuple[float, float] | None]]:
    """What a card says of a record: name, value and, of what was answered row by row, its bootstrap interval."""
    details, found, rows = record["details"], record["metrics"], []
    for name in LOWER if record["experiment"] in ("distillation", "ablation") else OWN:
        ends = None
        if name in metrics.FORMULAS and "references" in details:
            said, true = (records.unpack(details[part])[None] for part in ("predictions", "references"))
            ends = metrics.interval(metrics.resample({"own": said}, true[0], metrics.FORMULAS[name])["own"])
        elif name in details:  # SQuAD's, row by row
            own = 100 * records.unpack(details[name])
            ends = metrics.mean_interval(own, np.ones(len(own)))
        rows += [(name, found[name], ends)] if name in found else []
    return rows[:-1] if len(rows) > 1 and rows[-1][0] == "score" else rows  # which is made of the others


def measured_on(record: dict) -> dict:
    """The provenance of the rows that a record's metrics are about."""
    heldout = record["settings"].get("corpus", {}).get("heldout")
    fit = [one for one in record["provenance"]["data"] if one.get("config") == heldout and "train" not in one["rows"]]
    return fit[0] if fit else record["provenance"]["data"][-1]


def results(record: dict) -> list["EvalResult"]:
    """The same for the card's metadata."""
    from huggingface_hub import EvalResult

    about, kind = measured_on(record), TASKS.get(record["experiment"], "text-classification")
    where = {"dataset_type": about["id"], "dataset_name": about["id"], "dataset_config": about.get("config")}
    where |= {"dataset_split": next(iter(about["rows"]), None), "dataset_revision": about.get("revision")}
    return [
        EvalResult(kind, metric_type=name, metric_value=round(value, 4), **where) for name, value, _ in measured(record)
    ]


def card(found: list[dict], to: str, license: str, onnx: bool = False) -> "ModelCard":
    """The card of the model that the records tell of; InputError if its metadata is not what the Hub takes."""
    from huggingface_hub import ModelCard, ModelCardData

    first, origin = found[0], found[0]["provenance"]
    kind = TASKS.get(first["experiment"], "text-classification")
    base = [source for source in origin["models"] if source.get("weights") != "ours"]
    names = list(dict.fromkeys(source["id"] for one in found for source in one["provenance"]["data"]))
    data = ModelCardData(
        language="en",
        license=license,
        library_name="onnxruntime" if onnx else "transformers",
        pipeline_tag=kind,
        tags=["distilbert", "distillation"],
        datasets=[name for name in names if ":" not in name],
        base_model=next((source["id"] for source in base if source["id"].count("/") == 1), None),
        model_name=to.partition("/")[2],
        eval_results=[result for record in found for result in results(record)],
    )
    table = []
    for record in found:
        about = measured_on(record)
        rows = ", ".join(f"{count:,} {split} rows" for split, count in about["rows"].items())
        part = "; ".join(about.get("capped", {}).values())
        where = f"{about['id']} {about.get('config', '')} ({part or rows})"
        for name, value, ends in measured(record):
            inside = "{:.3f} to {:.3f}".format(*ends) if ends else "–"
            table.append(f"| {name.replace('_', ' ')}, {where} | {value:.3f} | {inside} |")
    unit = ", ".join(f"{key} {value}" for key, value in first["unit"].items())
    how = f"Measured on {origin['cpu']}, {origin['threads']} thread(s), torch {origin['versions']['torch']}"
    how += f", in {first['settings'].get('precision', 'fp32')}; code at commit {origin['commit'] or 'unknown'}."
    sources = (f"- {one['id']} at {one.get('revision') or '–'}" for one in (*origin["models"], *origin["data"]))
    use = (PIPE if kind in TEXTS else READER).format(kind=kind, to=to, text=TEXTS.get(kind))
    told = {"data": data.to_yaml(), "name": to, "what": f"{first['experiment']}, {unit}", "table": "\n".join(table)}
    told |= {"use": '# python use.py "Not bad at all."' if onnx else use, "sources": "\n".join(dict.fromkeys(sources))}
    template = (ROOT / "tools" / "card.md").read_text(encoding="utf-8")
    return check(ModelCard(template.format(how=how, **told)))


def check(made: "ModelCard") -> "ModelCard":
    """See that a card is one as far as can be told here: the Hub itself looks at it when it is pushed."""
    data = made.data.to_dict()
    lacking = [key for key in ("license", "library_name", "pipeline_tag", "model-index") if not data.get(key)]
    values = [m["value"] for one in data.get("model-index", []) for r in one["results"] for m in r["metrics"]]
    if lacking or not values or not np.isfinite(values).all():
        raise InputError(f"the card has no {', '.join(lacking) or 'finite value'}: its records do not tell")
    return made


def share(folder: Path, to: str, license: str, push: bool) -> str:
    """Show the card, and push it with the model if asked to; what was done, in a line."""
    import huggingface_hub

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", to):
        raise InputError(f"--to {to}: expected OWNER/NAME")
    made = card(evidence(folder), to, license, onnx=any(folder.glob("*.onnx")))
    files = sorted({path for kind in GIVEN for path in folder.glob(kind)} - {folder / "training_log.json"})
    print(made.content)
    size = sum(path.stat().st_size for path in files) / 1e6
    what = f"{len(files)} files, {size:.1f} MB: {', '.join(path.name for path in files)}"
    if not push:
        return f"nothing was pushed; --push would send this card and {what}"
    if not (token := huggingface_hub.get_token()):
        raise InputError("--push: no token of the Hub's here: run `hf auth login`, or set HF_TOKEN")
    try:
        made.validate()
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(to, exist_ok=True)
        api.upload_folder(repo_id=to, folder_path=folder, allow_patterns=[path.name for path in files])
        made.push_to_hub(to, token=token)
    except Exception as error:  # the Hub's clients raise errors of many families
        raise OSError(f"{to}: {' '.join(str(error).split())}") from error
    return f"pushed to {to}: {what}"


def main() -> int:
    """0: done, 1: the Hub refused, 2: what was asked for makes no sense."""
    parser = argparse.ArgumentParser("tools.share", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("checkpoint", type=Path, help="its folder")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="where on the Hub")
    parser.add_argument("--license", default="apache-2.0", help="of the model: its teacher's (apache-2.0)")
    parser.add_argument("--push", action="store_true", help="really push it")
    given = parser.parse_args()
    try:
        print(share(given.checkpoint, given.to, given.license, given.push))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
