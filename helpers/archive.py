"""Records as one small file: packed where they were made, as in Colab, and unpacked into the project at home."""

import re
import zipfile
from pathlib import Path

from . import ROOT, InputError, records
from .profiles import NAMES

MEMBER = re.compile(r"(?P<run>[\w-]+)/records/\w+/[A-Za-z0-9._-]+-[0-9a-f]{8}\.json")
LARGEST = 20_000_000  # bytes of one record; the largest there are have about one million


def pack(space: records.Workspace) -> Path:
    """All records of a workspace as results/<profile>-records.zip; the file.

    Raises:
        InputError: there are none.
    """
    found = sorted(space.records.rglob("*.json"))
    if not found:
        raise InputError(f"no records in {space.records} yet: run a notebook that measures something first")
    path = space.results.with_name(f"{space.name}-records.zip")
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in found:
            packed.write(record, record.relative_to(space.results.parent).as_posix())
    temporary.replace(path)
    return path


def unpack(path: Path, results: Path = ROOT / "results") -> dict[str, int]:
    """Put packed records where a run would have put them, all or none: how many came, and were there already.

    A record that is there stays as it is.

    Raises:
        InputError: no archive of records; a member that is no record of ours, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            members = packed.infolist()
            if wrong := next((one.filename for one in members if not _is_ours(one)), None):
                raise InputError(f"{path}: {wrong} is no record of this project; nothing was unpacked")
            texts = {one.filename: packed.read(one).decode() for one in members}
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no whole archive of records ({error}); pack it again") from None
    for name, text in texts.items():
        records.parse(text, f"{path}: {name}")
    new = {name: text for name, text in texts.items() if not (results / name).exists()}
    for name, text in new.items():
        records.write_whole(results / name, text)
    return {"new": len(new), "there already": len(texts) - len(new)}


def _is_ours(member: zipfile.ZipInfo) -> bool:
    found = MEMBER.fullmatch(member.filename)
    ours = found and (found["run"].removesuffix("-random") in NAMES or found["run"].startswith("gpu-"))
    return bool(ours) and member.file_size < LARGEST
