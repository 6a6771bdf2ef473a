"""What every experiment is: units, settings, how a unit is measured; the loop over them, here or on a Ray cluster."""

import functools
import importlib.util
import logging
import os
import socket
import statistics
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from .. import ROOT, InputError
from ..profiles import Profile
from . import records

METER = "{desc}: {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} in {elapsed}{postfix}"
UNKNOWN = 10.0  # seconds that a unit is taken to need of which nothing is on record
READ_ONLY = "SERIES_READ_ONLY"  # the environment's word that nothing may be measured, since others run beside
CLUSTER = "RAY_ADDRESS"  # the environment's word for where a Ray cluster is, which shares this file system
TRIES = 3  # of a unit whose node or process dies there
_bar: tqdm | None = None  # of the experiment that is running


class SweepError(RuntimeError):
    """Some units failed; the message names each with its reason. The others have their records."""


class UnmeasuredError(RuntimeError):
    """A unit has no record, and nothing may be measured now."""


class Experiment:
    """A question, asked unit by unit: a subclass says which units there are, and how one is measured.

    A unit is a small dictionary, as {"task": "sst2", "model": "student", "seed": 0}; what has a record with the present
    settings is not measured again. `name`: of the experiment, in records. `spreads`: its units time nothing, and may be
    measured on the nodes of a cluster.
    """

    name: str
    spreads = False

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """With `fresh`, what has a record, or is on disk already, is made again."""
        self.profile, self.space, self.fresh = profile, space, fresh

    def __new__(cls, *given, **named):
        made = super().__new__(cls)
        made.arguments = given, named
        return made

    def __reduce__(self):  # it travels to other machines as what it was made of, without the models that it holds
        return functools.partial(type(self), **self.arguments[1]), self.arguments[0]

    @property
    def units(self) -> list[dict]:
        """Every unit, one after those that it builds on."""
        raise NotImplementedError

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers; InputError if what it builds on has not been made yet."""
        raise NotImplementedError

    def measure(self, unit: dict) -> records.Measurement:
        """The unit's numbers."""
        raise NotImplementedError

    def why_not(self, unit: dict) -> str | None:
        """Why the unit cannot be measured here or now; None if it can."""
        return None

    def seconds(self, unit: dict) -> float:
        """About how long the unit takes, to plan by: unless a subclass knows better, as others of its kind took."""
        return self._on_record

    @functools.cached_property
    def _on_record(self) -> float:
        folders = {self.space.records / self.name, ROOT / "results" / self.profile.name / "records" / self.name}
        taken = []
        for path in [path for folder in folders for path in folder.glob("*.json")]:
            try:
                taken.append(records.read_record(path)["provenance"]["seconds"])
            except InputError:  # it will be named where it is used
                continue
        return statistics.median(taken) if taken else UNKNOWN

    @property
    def ready(self) -> list[dict]:
        """The units that can be measured here and now."""
        return [unit for unit in self.units if not self.why_not(unit)]

    def unmeasured(self, units: list[dict] | None = None) -> list[dict]:
        """Those of the units, by default of all that are ready, that have no record with the present settings."""
        return [unit for unit in (self.ready if units is None else units) if self.fresh or not self.record(unit)]

    def record(self, unit: dict) -> dict | None:
        """The unit's record with the present settings, if there is one."""
        try:
            return self.space.find(self.name, unit, self.settings(unit))
        except InputError:  # what it builds on is still to be made
            return None

    def plan(self) -> str:
        """What will be run and about how long, and what cannot be, and why; InputError if nothing can."""
        ready, reasons = self.ready, {}
        for unit in self.units:
            if reason := self.why_not(unit):
                reasons.setdefault(reason, []).append(records.slug(unit))
        if reasons and not ready:
            raise InputError(next(iter(reasons)))
        todo = self.unmeasured(ready)
        own = f"teacher {self.profile.teacher}; its layers in the student: {self.profile.distillation.layers}"
        lines = [f"profile {self.profile.name}; {own}; results in results/{self.space.name}/"]
        lines += [
            f"{len(ready)} units, of which {len(todo)} have no record yet: about {self.minutes(todo):.0f} minutes"
        ]
        for reason, names in reasons.items():
            lines += [f"{', '.join(names) if len(names) < 4 else f'{len(names)} units'}: – {reason}"]
        return "\n".join(lines)

    def minutes(self, units: list[dict]) -> float:
        """About how long the units take here."""
        return sum(map(self.seconds, units)) / 60

    def run(self, units: list[dict] | None = None) -> list[dict]:
        """The record of each unit, by default of all that are ready, in order: read, or measured now and written.

        One plain progress bar, which reads well in a saved page too, shows where it is. SweepError at the end if any
        unit failed.
        """
        global _bar
        units = self.ready if units is None else units
        found, failures = [], []
        # miniters: `report` shows within a unit, too. position: else ours would move below others' bars that linger.
        bar = {"bar_format": METER, "file": sys.stdout, "miniters": 0, "position": 0, "disable": not units}
        with tqdm(total=len(units), desc=self.name, **bar) as _bar:
            spread = self.spreads and CLUSTER in os.environ and READ_ONLY not in os.environ
            todo = self.unmeasured(units) if spread else []
            elsewhere = on_cluster(self, todo, _bar.set_postfix_str) if todo else {}
            measured_now = sum(why is None for why in elsewhere.values())
            for unit in units:
                name = records.slug(unit)
                _bar.set_postfix_str(name)
                try:
                    if elsewhere.get(name):
                        raise RuntimeError(elsewhere[name])
                    settings = self.settings(unit)
                    again = self.fresh and name not in elsewhere
                    record = None if again else self.space.find(self.name, unit, settings)
                    if not record:
                        if os.environ.get(READ_ONLY):
                            raise UnmeasuredError(name)
                        started = datetime.now(UTC)
                        measured = self.measure(unit)
                        origin = records.provenance(started, measured.data, measured.models)
                        record = self.space.write(self.name, unit, settings, measured, origin)
                        measured_now += 1
                    found.append(record)
                except UnmeasuredError:
                    raise
                except Exception as error:
                    reason = f"{type(error).__name__}: {str(error).strip()} ({_place(error)})"
                    failures.append(f"{self.name} {name}: {reason}")
                    _bar.write(f"{self.name} {name}: FAILED: {error}", file=sys.stdout)
                _bar.update()
            there = f"; {len(found) - measured_now} had a record" if len(found) > measured_now else ""
            _bar.set_postfix_str(f"{measured_now} measured{there}")
        _bar = None
        if failures:
            raise SweepError(f"{len(failures)} failed, {len(found)} done: " + "; ".join(failures))
        return found


def report(where: str) -> None:
    """Say on the bar of the experiment that is running, if one is, where its present unit is."""
    if _bar is not None:
        unit = (_bar.postfix or "").partition(":")[0]
        _bar.set_postfix_str(f"{unit}: {where}", refresh=False)
        _bar.update(0)


def check_cluster(address: str) -> None:
    """See that Ray is installed, and something answers at the address; InputError if not."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("a cluster needs Ray: pip install -e '.[ray]'")
    host, _, port = address.rpartition(":")
    try:  # Ray itself would try for minutes
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError):
        what = "expected HOST:PORT of one that `ray start --head` has started"
        raise InputError(f"no Ray cluster answers at {address!r}: {what}") from None


def on_cluster(experiment: Experiment, units: list[dict], say: Callable[[str], None]) -> dict[str, str | None]:
    """Measure units, each as soon as what it builds on is there: by slug, why one failed, or None. `say`: what is done.

    A task asks for a GPU if the profile runs on one, else for as many cores as it has threads. InputError if no node
    of the cluster has as much.
    """
    check_cluster(os.environ[CLUSTER])
    import ray

    if not ray.is_initialized():
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(runtime_env=environment, log_to_driver=False, logging_level=logging.CRITICAL)
    profile = experiment.profile
    gpu = getattr(experiment, "device", None) and experiment.device.type == "cuda"
    wants = {"num_cpus": 1, "num_gpus": 1} if gpu else {"num_cpus": profile.threads or 1}
    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(one.get("CPU", 0) >= wants["num_cpus"] and one.get("GPU", 0) >= wants.get("num_gpus", 0) for one in has):
        most = {kind: max(one.get(kind, 0) for one in has) for kind in ("CPU", "GPU")}
        raise InputError(f"no node of the cluster has what a unit asks for, {wants}: the largest has {most}")
    task = ray.remote(max_retries=TRIES, **wants)(_measured)
    waiting, running, ended = list(units), {}, {}
    while waiting or running:
        for unit in list(waiting):
            try:
                settings = experiment.settings(unit)
            except InputError as error:  # it builds on what isn't there: yet, or since that failed
                if running:
                    continue
                ended[records.slug(unit)] = str(error)
            else:
                running[task.remote(experiment, unit)] = unit, settings
            waiting.remove(unit)
        for one in ray.wait(list(running))[0] if running else ():
            (unit, settings), why = running.pop(one), None
            try:
                *came, theirs = ray.get(one)
                if theirs != settings:
                    differ = ", ".join(key for key in settings if theirs.get(key) != settings[key])
                    raise InputError(f"a node disagrees on {differ}: name it in the profile or with --set")
                experiment.space.write(experiment.name, unit, settings, *came)
            except Exception as error:  # the unit's own, or Ray's of a task that died too often
                why = str(getattr(error, "cause", None) or error).strip()
            ended[records.slug(unit)] = why
            say(f"{len(ended)} of {len(units)} came from the cluster")
    return ended


def _measured(experiment: Experiment, unit: dict) -> tuple[records.Measurement, dict, dict]:
    """On a node: the unit's numbers, what they were measured with, and its settings as they are there."""
    started, settings = datetime.now(UTC), experiment.settings(unit)
    measured = experiment.measure(unit)
    return measured, records.provenance(started, measured.data, measured.models), settings


def _place(error: Exception) -> str:
    """The last line of our own that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if ROOT / "helpers" in Path(frame.filename).parents] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"
