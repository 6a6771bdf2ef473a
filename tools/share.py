"""Share a model of this project, with a card made from its record: python -m tools.share CHECKPOINT --to OWNER/NAME."""

import re
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from helpers import InputError, reason
from helpers.measure import metrics, records
from helpers.models import checkpoints

from . import command

FILES = ["*.safetensors", "*.onnx", "config.json", "tokenizer*", "vocab.txt", "pruned.json", "use.py", "report.*"]
KINDS = {"distillation": "fill-mask", "ablation": "fill-mask", "squad": "question-answering"}
SCORES = ("masked_lm_loss", "kl_to_teacher", "masked_token_accuracy", "exact_match", *metrics.FORMULAS, "score")
ID = re.compile(r"[\w.-]+/[\w.-]+")


def evidence(folder: Path) -> dict:
    """The record that tells of a checkpoint in a store, or of what `compress` handed over; InputError without any."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one of a store's checkpoints/, or what compress made")
    made, place = checkpoints.file_hash(folder), folder.resolve()
    stores = [place.with_name(f"{place.name}.work"), *place.parents[2:3]]
    paths = [path for store in stores for path in sorted(store.glob("results/*/records/*/*.json"))]
    found = [one for one in map(records.read_record, paths) if one["details"].get("checkpoint") == made]
    if not found:
        raise InputError(f"{folder}: no record tells of its weights ({made}); measure it with a notebook or compress")
    return min(found, key=lambda one: "variant" in one["unit"])  # that of the training, if it was trained


def interval(record: dict, name: str) -> tuple[float, float] | None:
    """The 95% bootstrap interval of a metric, where a record keeps what was answered row by row."""
    details, rule = record["details"], metrics.FORMULAS.get(name, metrics.share_equal)
    if name in details:  # how right each answer was, 0 to 1
        return metrics.mean_interval(100 * (own := records.unpack(details[name])), np.ones(len(own)))
    if "references" in details:
        said, true = (records.unpack(details[kind]) for kind in ("predictions", "references"))
        if np.isclose(rule(said, true), record["metrics"][name]):  # a score may be by another rule
            return metrics.interval(metrics.resample({"": said[None]}, true, rule)[""])
    return None


def card(folder: Path, to: str, license: str) -> ModelCard:
    """A checkpoint's card: what it is, made from and worth, by its record; InputError without any."""
    record, onnx = evidence(folder), any(folder.glob("*.onnx"))
    origin, kind = record["provenance"], KINDS.get(record["experiment"], "text-classification")
    on = next(one for one in origin["data"] if "train" not in one["rows"])
    where = {"dataset_config": on.get("config"), "dataset_split": [*on["rows"]][0], "dataset_revision": on["revision"]}
    scores = {name: round(record["metrics"][name], 4) for name in SCORES if name in record["metrics"]}
    scores = {name: value for name, value in scores.items() if name != "score"} or scores  # which is their mean
    public = [[one["id"] for one in origin[kind] if ID.fullmatch(one["id"])] for kind in ("models", "data")]
    about = {"license": license, "pipeline_tag": kind, "language": "en", "tags": ["distilbert", "distillation"]}
    about |= {"base_model": next(iter(public[0]), None), "datasets": sorted({*public[1]}) or None}
    about["eval_results"] = [EvalResult(kind, on["id"], on["id"], n, value, **where) for n, value in scores.items()]
    about |= {"library_name": "onnxruntime" if onnx else "transformers", "model_name": to.partition("/")[2]}
    told = {"to": to, "record": record, "on": on, "scores": scores, "onnx": onnx, "kind": kind}
    ends, template = {name: interval(record, name) for name in scores}, Path(__file__).with_name("card.md")
    made = ModelCard.from_template(ModelCardData(**about), template_path=template, intervals=ends, **told)
    return ModelCard(made.content)  # read again, which refuses metadata that are no model's


def main() -> int:
    """The command; its exit code."""
    parser = command.parser("python -m tools.share", __doc__)
    parser.add_argument("checkpoint", type=Path, help="its folder")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="where on the Hub")
    parser.add_argument("--license", default="apache-2.0", help="of the model: its teacher's (apache-2.0)")
    parser.add_argument("--push", action="store_true", help="really push it; without, nothing leaves this machine")
    given = parser.parse_args()

    def work() -> None:
        if not ID.fullmatch(given.to):
            raise InputError(f"--to {given.to}: expected OWNER/NAME")
        print((made := card(given.checkpoint, given.to, given.license)).content)
        if given.push and huggingface_hub.get_token() is None:
            raise InputError("--push: no token of the Hub's here: run `hf auth login`, or set HF_TOKEN")
        try:
            if given.push:
                made.validate()
                huggingface_hub.create_repo(given.to, exist_ok=True)
                huggingface_hub.upload_folder(repo_id=given.to, folder_path=given.checkpoint, allow_patterns=FILES)
                made.push_to_hub(given.to)
        except Exception as error:  # the Hub's clients raise errors of many families
            raise OSError(f"{given.to} was not pushed whole: {reason(error)}; run it again") from error
        print("pushed" if given.push else "nothing was pushed; --push does")

    return command.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
