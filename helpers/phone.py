"""Models on a phone: a folder to take there, with a script that times them, and what it brings back."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from . import InputError, models, records, runners

SCRIPT = Path(__file__).with_name("phone.sh")
COLUMNS = ["model", "threads", "run", "seconds", "android", "api", "abi", "ram_mb", "device", "name"]


def bundle(exported: Mapping[str, Path], rows: Sequence[runners.Inputs], folder: Path) -> Path:
    """A folder, in `folder`, that holds models with inputs and expected outputs, and the script that times them.

    Laid out as ONNX Runtime's own tools read it: `<name>/model.ort`, and in `<name>/test_data_set_0` the first row's
    inputs and the logits of this machine, as tensors; that row is timed. The other rows, in `<name>/answer_1`, …, are
    for comparing answers. Beside the model its tokenizer. Other models, rows or another script make another folder, so
    the times that a phone sends back stay with what was timed. `exported`: a folder for each name.

    Raises:
        InputError: a name that is no plain file name; a folder without an exported model.
    """
    for name in exported:
        if not name.replace("_", "").isalnum():
            raise InputError(f"{name!r}: the name of a model on a phone has letters, digits and _ only")
    holds = {name: models.file_hash(source) for name, source in exported.items()} | {"script": SCRIPT.read_text()}
    made = folder / f"phone-{records.digest(holds | {'rows': [row['input_ids'].tolist() for row in rows]})}"
    if not made.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".phone-", dir=folder) as scratch:
            building = Path(scratch) / made.name
            for name, source in exported.items():
                _lay_out(source, rows, building / name)
            shutil.copy(SCRIPT, building / "run.sh")
            building.rename(made)
    return made


def _lay_out(source: Path, rows: Sequence[runners.Inputs], place: Path) -> None:
    """One model with its tokenizer, the rows, and what it says to them."""
    from onnx import numpy_helper

    run = runners.load(source, threads=1)
    place.mkdir(parents=True)
    for path in (*source.glob("*.onnx"), *source.glob("*.ort"), *source.glob("tokenizer.json")):
        shutil.copy(path, place)
    for number, row in enumerate(rows):
        tensors = {f"input_{at}": (row[name], name) for at, name in enumerate(run.inputs)}
        tensors["output_0"] = run(row), "logits"
        given = place / (f"answer_{number}" if number else "test_data_set_0")
        given.mkdir()
        for file, (values, name) in tensors.items():
            (given / f"{file}.pb").write_bytes(numpy_helper.from_array(values, name).SerializeToString())


def tensors(given: Path) -> tuple[runners.Inputs, np.ndarray]:
    """The inputs of one row, as `bundle` laid them out, and the logits that belong to them."""
    from onnx import TensorProto, numpy_helper

    loaded = [TensorProto.FromString(path.read_bytes()) for path in sorted(given.glob("input_*.pb"))]
    expected = TensorProto.FromString((given / "output_0.pb").read_bytes())
    return {one.name: numpy_helper.to_array(one) for one in loaded}, numpy_helper.to_array(expected)


def read(path: Path) -> pd.DataFrame:
    """The times that a phone sent back: a row a run, seconds, and the phone that it was.

    Raises:
        InputError: other columns, no rows, or times that are no positive numbers.
    """
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table ({error}): expected what run.sh wrote") from None
    if list(table.columns) != COLUMNS:
        found = ", ".join(map(str, table.columns))
        raise InputError(f"{path}: columns {found}: expected {', '.join(COLUMNS)}, as run.sh writes them")
    seconds = pd.to_numeric(table.seconds, errors="coerce")
    if table.empty or not (np.isfinite(seconds) & (seconds > 0)).all():
        raise InputError(f"{path}: {len(table)} rows, and not all have a time in seconds: run run.sh again")
    return table.assign(seconds=seconds)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row a model and thread count: the milliseconds of what a phone sent back, and the phone."""
    rows = {}
    for (name, threads), own in table.groupby(["model", "threads"], sort=False):
        times, first = 1e3 * own.seconds, own.iloc[0]
        row = {"threads": threads, "mean (ms)": times.mean()}
        row |= {f"p{share} (ms)": np.percentile(times, share) for share in (50, 90, 99)}
        row = {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in row.items()}
        row |= {"n": len(own), "on": f"{first['name']} ({first.device}), Android {first.android}"}
        row["on"] += f" (API {first.api}), {first.abi}"
        rows[f"{name} {threads}"] = {"model": name} | row | {"RAM (MB)": f"{first.ram_mb:,}"}
    return pd.DataFrame(rows.values()).set_index("model") if rows else pd.DataFrame()
