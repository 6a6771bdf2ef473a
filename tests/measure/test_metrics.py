"""The metrics, against independent arithmetic, hand-made cases and a trusted library."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from helpers import InputError
from helpers.experiments import glue
from helpers.measure import metrics

BINARY = [task for task in metrics.GLUE if task not in ("stsb", "mnli")]


def by_hand(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 and Matthews' correlation from the four counts of a confusion matrix."""
    tp, tn = np.sum((predictions == 1) & (references == 1)), np.sum((predictions == 0) & (references == 0))
    fp, fn = np.sum((predictions == 1) & (references == 0)), np.sum((predictions == 0) & (references == 1))
    margins = float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return {
        "accuracy": (tp + tn) / len(references),
        "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
        "matthews_correlation": (float(tp) * tn - float(fp) * fn) / np.sqrt(margins) if margins else 0.0,
    }


@pytest.mark.parametrize("task", BINARY)
@pytest.mark.parametrize("kind", ["random", "all right", "all wrong", "constant", "one row", "constant references"])
def test_classification_metrics(task, kind):
    random = np.random.default_rng(sum(map(ord, task + kind)))
    references = random.integers(2, size=1 if kind == "one row" else 97)
    predictions = {
        "all right": references,
        "all wrong": 1 - references,
        "constant": np.ones_like(references),
    }.get(kind, random.integers(2, size=len(references)))
    if kind == "constant references":
        references = np.zeros_like(references)
    found = glue.GlueMetric(task).compute(predictions=predictions, references=references)
    assert set(found) == set(metrics.GLUE[task].metrics)
    for name, value in found.items():
        assert value == pytest.approx(by_hand(predictions, references)[name], abs=1e-12), name
        assert type(value) is float
    if "accuracy" in found:
        assert found["accuracy"] == sklearn_metrics.accuracy_score(references, predictions)


def test_mnli_has_three_classes():
    references, predictions = np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0])
    assert glue.GlueMetric("mnli").compute(predictions=predictions, references=references) == {"accuracy": 0.75}


@pytest.mark.parametrize("ties", [False, True])
def test_correlations(ties):
    random = np.random.default_rng(5)
    references = random.integers(0, 6, 200).astype(float) if ties else random.normal(size=200)
    predictions = references + random.normal(size=200)
    if ties:
        predictions = predictions.round()
    found = glue.GlueMetric("stsb").compute(predictions=predictions, references=references)
    ranks = [np.array([(np.sum(v < x) + (np.sum(v == x) + 1) / 2) for x in v]) for v in (predictions, references)]
    assert found["pearson"] == pytest.approx(np.corrcoef(predictions, references)[0, 1], abs=1e-12)
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predictions, references).statistic, abs=1e-12)


def test_constant_predictions_correlate_with_nothing():
    found = glue.GlueMetric("stsb").compute(predictions=[2.5] * 4, references=[0.0, 1.0, 2.0, 5.0])
    assert found == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(
    ("task", "predictions", "references", "message"),
    [
        ("sst3", [0], [0], "unknown task 'sst3': expected one of cola, sst2"),
        ("sst2", [], [], "0 predictions for 0 references"),
        ("sst2", [0, 1], [0], "2 predictions for 1 references"),
        ("sst2", [0, float("nan")], [0, 1], "prediction 1 is nan"),
        ("stsb", [float("inf"), 1.0], [0.0, 1.0], "prediction 0 is inf"),
        ("sst2", [0, 1], [0, -1], "label -1 in row 1, expected 0 to 1; GLUE's test labels are hidden"),
        ("sst2", [0, 1], [0, 2], "label 2 in row 1, expected 0 to 1$"),
        ("mnli", [0, 1], [0, 3], "label 3 in row 1, expected 0 to 2"),
        ("stsb", [0.0, 1.0], [2.0, 2.0], "all 2 references are 2.0"),
    ],
)
def test_what_cannot_be_measured_is_refused(task, predictions, references, message):
    with pytest.raises(InputError, match=message):
        glue.GlueMetric(task).compute(predictions=predictions, references=references)


def test_what_a_task_enters_the_macro_score_with():
    answers, truth = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 1])
    assert metrics.quick_score("mrpc", answers, truth) == pytest.approx((3 / 5 + 2 / 3) / 2), "of accuracy and F1"
    assert metrics.quick_score("mnli", answers, truth) == pytest.approx(3 / 5)


TRUSTED = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": lambda *both: sklearn_metrics.f1_score(*both, zero_division=0),
    "matthews_correlation": sklearn_metrics.matthews_corrcoef,
    "pearson": lambda references, predictions: stats.pearsonr(predictions, references).statistic,
    "spearman": lambda references, predictions: stats.spearmanr(predictions, references).statistic,
}


@pytest.mark.parametrize("task", metrics.GLUE)
@pytest.mark.parametrize("kind", ["random", "ties", "constant", "one class"])
def test_the_quick_score_is_the_metrics(task, kind):
    random = np.random.default_rng(11)
    references = random.integers(3 if task == "mnli" else 2, size=150).astype(float)
    predictions = np.where(random.random(150) < 0.3, 1 - references, references).clip(0)
    if task == "stsb":
        references, predictions = random.normal(size=(2, 150)).round(0 if kind == "ties" else 9)
    if kind == "constant":
        predictions = np.ones(150)
    if kind == "one class" and task != "stsb":
        references = np.zeros(150)
    exact = glue.GlueMetric(task).compute(predictions=predictions, references=references)
    for weights in (None, np.ones(150)):
        quick = metrics.quick_score(task, predictions, references, weights)
        assert quick == pytest.approx(np.mean([*exact.values()]), abs=1e-9)
    alike = np.ptp(predictions) == 0 or np.ptp(references) == 0  # of which the libraries would warn
    for name, value in exact.items():
        trusted = 0.0 if alike and name not in ("accuracy", "f1") else TRUSTED[name](references, predictions)
        assert value == pytest.approx(trusted, abs=1e-12)


@pytest.mark.parametrize("task", ["cola", "sst2", "mrpc", "stsb"])
@pytest.mark.parametrize("kind", ["random", "ties", "constant"])
def test_a_row_that_counts_three_times_is_there_three_times(task, kind):
    random = np.random.default_rng(5)
    answers, references = random.integers(2, size=(2, 60)).astype(float)
    if task == "stsb":
        answers, references = random.normal(size=(2, 60)).round(0 if kind == "ties" else 9)
    times = random.integers(4, size=(5, 60))
    if kind == "constant":  # what differs isn't drawn
        answers[:], answers[0], times[:, 0] = 1, 0, 0
    scores = metrics.quick_score(task, answers, references, times.astype(float))
    for found, own in zip(scores, times, strict=True):
        again = {"predictions": np.repeat(answers, own), "references": np.repeat(references, own)}
        assert found == pytest.approx(np.mean([*glue.GlueMetric(task).compute(**again).values()]), abs=1e-9)


TWO_THIRDS, HALF = 2 / 3, 1 / 2
CASES = [  # prediction, gold answers, exact match, F1: worked out by hand from the rules of the official script
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("denver broncos", ["Denver Broncos"], 1, 1),
    ("the Denver Broncos", ["Denver Broncos"], 1, 1),
    ("Denver Broncos", ["The Denver Broncos"], 1, 1),
    ("a dog", ["the dog"], 1, 1),
    ("an apple", ["apple"], 1, 1),
    ("An apple a day", ["apple day"], 1, 1),
    ("theatre", ["the atre"], 0, 0),  # articles are whole words only
    ("banana", ["b n n"], 0, 0),
    ("the", ["a"], 1, 0),  # nothing is left of either: equal, but no word is shared
    ("", ["the"], 1, 0),
    ("", ["Denver"], 0, 0),
    ("   ", ["Denver"], 0, 0),
    ("Denver", ["Broncos"], 0, 0),
    ("Denver", ["Denver Broncos"], 0, TWO_THIRDS),
    ("Denver Broncos", ["Denver"], 0, TWO_THIRDS),
    ("Denver Broncos", ["Broncos Denver"], 0, 1),  # F1 doesn't see the order
    ("Denver Denver", ["Denver"], 0, TWO_THIRDS),  # but how often a word occurs
    ("Denver Denver", ["Denver Denver Denver"], 0, 0.8),
    ("to be or not to be", ["to be"], 0, HALF),
    ("Denver.", ["Denver"], 1, 1),
    ("“Denver”", ["Denver"], 0, 0),  # curly quotes are no ASCII punctuation
    ('"Denver"', ["Denver"], 1, 1),
    ("U.S.", ["US"], 1, 1),
    ("U. S.", ["US"], 0, 0),
    ("1,000", ["1000"], 1, 1),
    ("$1.5 million", ["15 million"], 1, 1),  # so the rules have it
    ("1.5", ["1 5"], 0, 0),
    ("2010–2011", ["20102011"], 0, 0),  # an en dash isn't ASCII either
    ("2010-2011", ["20102011"], 1, 1),
    ("well-known", ["wellknown"], 1, 1),
    ("well-known", ["well known"], 0, 0),
    ("don't", ["dont"], 1, 1),
    ("rock 'n' roll", ["rock n roll"], 1, 1),
    ("  Denver\n\tBroncos ", ["Denver Broncos"], 1, 1),
    ("Denver\u00a0Broncos", ["Denver Broncos"], 1, 1),  # a no-break space is a space
    ("Beyoncé", ["Beyonce"], 0, 0),
    ("BEYONCÉ", ["beyoncé"], 1, 1),
    ("Straße", ["STRASSE"], 0, 0),
    ("北京", ["北京"], 1, 1),
    ("北京", ["北 京"], 0, 0),
    ("Denver", ["Broncos", "Denver", "Denver Broncos"], 1, 1),
    ("Denver Broncos", ["Denver", "the Broncos of Denver"], 0, 0.8),
    ("gold", ["golden anniversary", "gold-themed", "gold"], 1, 1),
    ("the the the", ["a an the"], 1, 0),
    ("an", ["An apple"], 0, 0),
    ("A", ["vitamin A"], 0, 0),  # the answer is lost with the article
    ("@", ["at"], 0, 0),
    ("50%", ["50"], 1, 1),
    ("x_y", ["xy"], 1, 1),
]


@pytest.mark.parametrize(("prediction", "gold", "exact", "overlap"), CASES)
def test_squad_by_the_official_rules(prediction, gold, exact, overlap):
    assert len(CASES) >= 40
    assert metrics.answer_scores(prediction, gold) == pytest.approx((exact, overlap))


def test_the_interval_of_a_mean_over_tokens_takes_whole_texts():
    random = np.random.default_rng(0)
    counts = random.integers(5, 50, 400)
    means = random.normal(3, 1, 400)  # all tokens of a text are alike: its tokens are one piece of evidence
    low, high = metrics.mean_interval(means * counts, counts)
    spread = np.sqrt(np.sum(counts**2 * (means - 3) ** 2)) / counts.sum()
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1) and low < 3.1 and high > 2.9
