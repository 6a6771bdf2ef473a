"""What the tests of experiments share: models that are pretrained in a second."""

from pathlib import Path

import pytest

from helpers import profiles
from helpers.experiments import pretraining
from helpers.measure import records


@pytest.fixture(scope="session")
def tiny() -> dict:
    """Overrides of mini with a teacher of two narrow layers and a student of one, trained for a few steps."""
    shape = {"layers": 2, "width": 32, "heads": 2, "feed_forward": 64}
    teacher = {"teacher_training.architecture": shape, "teacher_training.whole.steps": 6}
    text = {"corpus.train_blocks": 64, "corpus.heldout_blocks": 12, "corpus.curve_blocks": 4}
    student = {"distillation.layers": 1, "distillation.seeds": [0], "distillation.training.steps": 6}
    sizes = {"teacher_training.whole.batch_size": 8, "distillation.training.batch_size": 8}
    return {"threads": 1, "distillation.variants": ["student", "twin"]} | text | teacher | student | sizes


@pytest.fixture(scope="session")
def pretrained(tiny, tmp_path_factory) -> Path:
    """A store in which notebook 01 has run with `tiny`."""
    folder, profile = tmp_path_factory.mktemp("pretrained"), profiles.load("mini", tiny)
    pretraining.Pretraining(profile, records.Workspace(profile, str(folder))).run()
    return folder
