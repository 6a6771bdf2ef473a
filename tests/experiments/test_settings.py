"""What settings cover: data, the processor that something is timed on; and that what is committed is found again."""

import os
from types import SimpleNamespace

import pytest
import torch

from helpers import ROOT, InputError, profiles
from helpers.compression import own as brought
from helpers.data import hub
from helpers.experiments import compression, edge, glue, perplexity, pretraining, speed, squad
from helpers.measure import records
from helpers.models import checkpoints


def settings_of(profile: profiles.Profile, space: records.Workspace, units: dict[str, list[dict]], page):
    """A function of a record's experiment and unit: the settings that the code gives it today."""
    stages, pretrained = perplexity.Stages(profile, space), pretraining.Pretraining(profile, space)
    names = "Trial", "every_stage", "Mistakes", "Redrawn", "Throughput", "Scoring"
    *_, mistakes, redrawn, throughput, scoring = page("05_perplexity", *names)
    own = {
        "distillation": pretrained,
        "speed": speed.Speed(profile, space),
        "speed padding": page("02_glue", "PaddingTrial")[0](profile, space),
        "speed stages": throughput(stages),
        "speed scoring": scoring(stages),
        "perplexity": stages,
        "perplexity mistake": mistakes(stages, {}, {}),
        "perplexity redrawn": redrawn(stages),
        "ablation": glue.Ablation(profile, space),
        "ablation text": pretraining.Ablated(profile, space),
        "glue": glue.Glue(profile, space),
        "imdb": glue.Imdb(profile, space),
        "squad": squad.Squad(profile, space),
        "edge": edge.Deployed(profile, space),
    }
    emulated = page("09_edge", "why_not_arm64", "Emulated")[1]
    emulated.settings.__globals__["experiment"] = own["edge"]  # as on notebook 09's page
    own["arm64"] = emulated(profile, space)
    for name in ("quantization", "pruning"):
        own[name] = compression.Compression(profile, space, name=name)
        own[f"{name} text"] = compression.Losses(profile, space, name=name)
    names = {
        "fullsize": "FullSize",
        "compiled": "Compiled",
        "eighth_bit": "EighthBit",
        "worst_matrices": "WorstMatrices",
    }
    own |= {
        name: made(profile, space) for name, made in zip(names, page("06_quantization", *names.values()), strict=True)
    }
    own["eighth_bit"].settings.__globals__["experiment"] = own["quantization"]
    towards, as_set = page("07_pruning", "Towards", "settings")
    towards.settings = as_set
    as_set.__globals__.update(experiment=own["pruning"], task="sst2", shown="student")
    own["recovery"] = towards(profile, space)
    (finishing,) = page("07_pruning", "Finishing")
    notebook = finishing.settings.__globals__  # what its cells before have
    notebook.update(experiment=own["pruning"], task="sst2", shown="student", chosen=profile)
    notebook["finalists"] = {"student": ["fp32", "bf16", "onnx_fp32", "onnx_int8_embeddings", "taylor_50_recovered"]}
    notebook["finalists"]["teacher"] = ["fp32", "onnx_int8_embeddings"]
    half = [f"taylor_50_recovered{trimmed}_int8_embeddings" for trimmed in ("", "_trimmed")]
    notebook["finalists"]["student"] += [*half, "fp32_trimmed_int8_embeddings"]
    own["finishing"] = finishing(own["pruning"])
    names = "Mixed", "StillLonger", "Nearer", "Judged", "OnReviews", "OnQuestions"
    last = "Longest", "LongestOnTasks", "LongestOnReviews", "LongestAsked", "Articles", "ArticlesOnTasks"
    _, _, taught, *judged = page("12_nearer_text", *names, *last)
    judged, (longest, on_tasks, read, asked, alone, alone_on_tasks) = judged[:3], judged[3:]
    kinds = {"nearer text": taught, **dict(zip(("nearer", "nearer reviews", "nearer questions"), judged, strict=True))}
    own |= {name: made(profile, space) for name, made in kinds.items()}
    own["longest text"] = longest(profile, space, longer=profile.longest)
    own |= {
        "longest": on_tasks(profile, space),
        "longest questions": asked(profile, space),
        "longest reviews": read(profile, space),
    }
    own |= {"articles": alone_on_tasks(profile, space), "articles text": alone(profile, space)}
    own["squad_longer"] = page("04_squad", "SquadLonger")[0](profile, space)

    def settings(name: str, unit: dict) -> dict:
        kind = unit.get("comparison", "") if name == "speed" else ""
        if name == "perplexity":
            kind = {"": "", "masks redrawn": "redrawn"}.get(unit.get("mistake", ""), "mistake")
        elif name in ("quantization", "pruning", "ablation", "nearer", "longest", "articles"):
            kind = "" if "task" in unit else "text"
        if name in ("nearer", "longest") and kind and "_" in unit["model"]:
            kind = "reviews" if "length" in unit else "questions"
        return own[f"{name} {kind}".strip()].settings(unit)

    return settings


def settings_of_ones_own(record: dict, profile: profiles.Profile, steps: type, monkeypatch) -> dict:
    """Notebook 11's, of a model and rows that somebody brought: their digests are the record's, the rest the code's."""
    told, rows = record["settings"], [SimpleNamespace(source={"revision": None}) for _ in range(2)]
    if record["experiment"] == "staircase":
        steps.settings.__globals__["stay"] = range(told["vocabulary"])
        return steps(profile, None).settings(record["unit"])
    tried, session = object.__new__(brought.Smaller), object.__new__(brought.Session)
    tried.profile = session.profile = profile
    tried.of, tried.dev, tried.threads = SimpleNamespace(whole=None, length=512, train=rows[0]), rows[1], 1
    session.of, session.names = tried, list(told.get("files", {}))
    tried.record = lambda unit: {"details": {"checkpoint": told["files"][unit["variant"]]}}
    rows[0].source["revision"], rows[1].source["revision"] = told.get("train"), told.get("data")
    monkeypatch.setattr(checkpoints, "file_hash", lambda _: told["model"])
    return {"own": tried, "own_speed": session}[record["experiment"]].settings(record["unit"])


@pytest.mark.hub
@pytest.mark.slow
@pytest.mark.skipif("HF_ENDPOINT" not in os.environ, reason="HF_ENDPOINT is not set: no Hub to load from")
def test_every_committed_record_is_found_again_by_its_settings(monkeypatch, tmp_path, page):
    """On the processor, packages and data of its provenance: a setting that has changed has lost a record."""
    found = {path: records.read_record(path) for path in (ROOT / "results/laptop/records").glob("*/*.json")}
    units: dict[str, list[dict]] = {}
    for record in found.values():
        units.setdefault(record["experiment"], []).append(record["unit"])
    data = {source["id"]: source["revision"] for record in found.values() for source in record["provenance"]["data"]}
    monkeypatch.setattr(hub, "_revision", data.get)

    def place(origin: dict) -> None:
        monkeypatch.setattr(records, "cpu", lambda: {"model": origin["cpu"], "flags": origin["cpu_flags"]})
        monkeypatch.setattr(records, "versions", lambda: origin["versions"])
        monkeypatch.setattr(torch, "get_num_threads", lambda: origin["threads"])

    place(next(record["provenance"] for record in found.values() if record["experiment"] == "glue"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/laptop").symlink_to(ROOT / "results/laptop")
    profile = profiles.load("laptop")
    today, lost = settings_of(profile, records.Workspace(profile, str(tmp_path)), units, page), []
    (steps,) = page("11_your_own_model", "Steps")
    for path, record in found.items():
        if record["experiment"] == "trivial":  # its experiment is on notebook 04's page
            continue
        place(record["provenance"])
        if record["experiment"] in ("own", "own_speed", "staircase"):
            settings = settings_of_ones_own(record, profile, steps, monkeypatch)
        else:
            settings = today(record["experiment"], record["unit"])
        lost += [path.name] if records.file_name(record["unit"], settings) != path.name else []
    assert not lost and len(found) >= 530


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A profile of the Hub, whose data sets stand at a revision that can be moved on; nothing is fetched."""
    at = {"revision": "a"}
    monkeypatch.setattr(records, "revision", lambda *_: at["revision"])
    hub._revision.cache_clear()
    profile = profiles.load("laptop")
    yield at, profile
    hub._revision.cache_clear()


def test_data_that_moved_on_are_other_settings_a6(asked):
    """Point A6.1: whoever had all of SQuAD got the number of a twelfth of it as their own."""
    at, profile = asked
    before = hub.state(profile, "rajpurkar/squad", "openai/gsm8k")
    assert before == {"data": {"rajpurkar/squad": "a", "openai/gsm8k": "a"}}
    at["revision"] = "b"
    hub._revision.cache_clear()
    assert hub.state(profile, "rajpurkar/squad") == {"data": {"rajpurkar/squad": "b"}}
    assert "data" not in hub.state(profiles.load("mini"), "rajpurkar/squad"), "the mini-world has a version"


def test_a_folder_of_ones_own_is_known_by_what_is_in_it(asked, tmp_path):
    """Trouble A6: the files were replaced by other text, and "nothing measured again"."""
    at, profile = asked
    (tmp_path / "train.txt").write_text("snow fell\n")
    before = hub.state(profile, str(tmp_path))
    (tmp_path / "train.txt").write_text("rain fell\n")
    hub._revision.cache_clear()
    after = hub.state(profile, str(tmp_path))
    assert before != after and None not in after["data"].values()


@pytest.mark.parametrize("which", ["padding", "throughput", "scoring", "edge", "fullsize", "speed"])
def test_another_processor_of_the_same_name_is_another_setting_a6(monkeypatch, tmp_path, which, page):
    """Point A6.2: "AMD EPYC" is the name of at least three machines."""
    profile = profiles.load("mini")
    space = records.Workspace(profile, str(tmp_path))
    monkeypatch.setattr(pretraining.Pretraining, "weights", lambda *_: "w")
    monkeypatch.setattr(glue.Downstream, "finetuned_hash", lambda *_: "w")
    stages = perplexity.Stages(profile, space)
    experiment = {
        "padding": lambda: page("02_glue", "PaddingTrial")[0](profile, space),
        "throughput": lambda: page("05_perplexity", "Trial", "every_stage", "Throughput")[-1](stages),
        "scoring": lambda: page("05_perplexity", "Trial", "Scoring")[-1](stages),
        "edge": lambda: edge.Deployed(profile, space),
        "fullsize": lambda: page("06_quantization", "FullSize")[0](profile, space),
        "speed": lambda: speed.Speed(profile, space),
    }[which]()
    unit = experiment.units[0] if which != "fullsize" else {"shape": "distilbert", "variant": "fp32"}
    digests = set()
    for flags in (["avx2"], ["avx2", "avx512_vnni"]):
        monkeypatch.setattr(records, "cpu", lambda flags=flags: {"model": "AMD EPYC", "flags": flags})
        digests.add(records.digest(experiment.settings(unit)))
    assert len(digests) == 2


def test_every_experiment_names_its_data(tmp_path, monkeypatch):
    """Whatever reads a data set has its revision among its settings: in the mini-world, the world's version."""
    profile = profiles.load("mini")
    space = records.Workspace(profile, str(tmp_path))
    monkeypatch.setattr(pretraining.Pretraining, "weights", lambda *_: "w")
    monkeypatch.setattr(glue.Downstream, "finetuned_hash", lambda *_: "w")
    for kind in (pretraining.Pretraining, pretraining.Ablated, glue.Glue, glue.Ablation, glue.Imdb, squad.Squad):
        experiment = kind(profile, space)
        assert all("world" in experiment.settings(unit) for unit in experiment.units), kind
    for made in (perplexity.Stages, compression.Compression, compression.Losses):
        experiment = made(profile, space)
        assert all("world" in experiment.settings(unit) for unit in experiment.units), made


def test_a_model_takes_the_lengths_of_the_profile_k11(teacher, tokenizer, tmp_path):
    """Kind K11: 256 tokens for a model of 128 ended in a RuntimeError about the size of a tensor."""
    teacher.save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    given = {"teacher": str(tmp_path / "short"), "distillation.layers": 2}
    profile = profiles.load("laptop", given)
    with pytest.raises(InputError, match=r"= 128: .*short takes 64 tokens; lower it"):
        pretraining.Pretraining(profile, records.Workspace(profile, str(tmp_path)))
