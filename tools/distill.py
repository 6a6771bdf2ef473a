"""Notebook 01's models, trained by many processes: accelerate launch -m tools.distill --profile t4 [--set KEY=VALUE] …

Each process takes its share of every batch, so the losses are those of one; the first alone writes. A run that was cut
off goes on from its last checkpoint, with as many processes or with others. The notebook finds the records. On
processors alone: torchrun --nproc_per_node 2 -m tools.distill --profile mini.
"""

import argparse
import os
import sys

from helpers import InputError, profiles
from helpers.measure import records

from . import command, notebooks


def train(options: argparse.Namespace) -> None:
    """Train what has no record yet; InputError if processes were told different things, or outnumber the GPUs."""
    overrides, parameters = notebooks.sort_settings(options.set, notebooks.select("01"))
    profile = profiles.load(options.profile, overrides)
    if profile.hub == "miniworld":
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of the Hub's is imported
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from helpers.experiments import pretraining

    from .run import hold

    cpu = profile.device == "cpu" or not torch.cuda.is_available()
    processes, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if not cpu and processes > there:
        raise InputError(f"{processes} processes for {there} GPU(s): start as many as there are, or add --cpu")
    state = PartialState(cpu=cpu)
    told = gather_object([records.digest(profile.model_dump() | parameters)])
    if len(set(told)) > 1:
        raise InputError("the processes were given different profiles or settings: start all with the same line")
    space = records.Workspace(profile, parameters.get("store"))
    held = os.environ.get("SERIES_HELD") == str(space.results)  # by the run whose notebook 01 started this one
    _lock = hold(space) if state.is_main_process and not held else None  # until this ends
    for kind in (pretraining.Pretraining, pretraining.Ablated):
        experiment = kind(profile, space)
        for unit in experiment.units:
            state.wait_for_everyone()
            if not experiment.record(unit):
                experiment.trained(unit)
            state.wait_for_everyone()
            if state.is_main_process:
                experiment.run([unit])


def main() -> int:
    """The command; its exit code."""
    parser = command.parser("tools.distill", __doc__)
    parser.add_argument("--profile", default="mini", metavar="NAME", help=", ".join(profiles.NAMES))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as run_all.sh takes them")
    options = parser.parse_args()
    return command.exit_code(lambda: train(options))


if __name__ == "__main__":
    sys.exit(main())
