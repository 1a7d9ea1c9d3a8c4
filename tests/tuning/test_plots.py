"""The pictures of a study: of complete, pruned, failed and no trials."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from deeplense.tuning import plots

LR, DROPOUT = FloatDistribution(1e-4, 1e-1, log=True), FloatDistribution(0.0, 0.5)
SCHEDULE = CategoricalDistribution(["one_cycle", "constant"])


def study(n: int, pruned: int = 0, failed: int = 0, diverged: int = 0, only_lr: bool = False) -> optuna.Study:
    """Complete trials whose loss depends on the learning rate alone, then others."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(direction="minimize")
    draw = np.random.default_rng(0)
    states = [TrialState.COMPLETE] * n + [TrialState.PRUNED] * (pruned + diverged) + [TrialState.FAIL] * failed
    for k, state in enumerate(states):
        params = {"training.lr": float(10 ** draw.uniform(-4, -1)), "model.dropout": float(draw.uniform(0, 0.5))}
        loss = (math.log10(params["training.lr"]) + 2) ** 2
        space: dict[str, optuna.distributions.BaseDistribution] = {"training.lr": LR, "model.dropout": DROPOUT}
        choice = {"training.schedule": SCHEDULE.choices[k % 2]}
        values = params if only_lr else params | choice
        space = space if only_lr else space | {"training.schedule": SCHEDULE}
        if only_lr:
            values, space = {"training.lr": params["training.lr"]}, {"training.lr": LR}
        steps = {1: loss + 1, 2: loss + 0.5} if k < n + pruned else {1: math.nan}
        made.add_trial(
            create_trial(
                state=state,
                params=values,
                distributions=space,
                value=loss if state == TrialState.COMPLETE else None,
                intermediate_values=steps if state == TrialState.PRUNED else {},
            )
        )
    return made


def pixels(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # e.g. of a legend without entries
        figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("L"))


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def line(figure: Figure, label: str) -> np.ndarray:
    """(2, n) x and y of the line of this label."""
    (found,) = (one for one in figure.axes[0].lines if one.get_label() == label)
    return np.array(found.get_data(), dtype=float)


def test_history_shows_every_trial_and_the_best_so_far() -> None:
    made = study(12, pruned=3, failed=2, diverged=1)
    figure = plots.history(made)
    assert pixels(figure).std() > 5
    values = np.array([t.value for t in made.trials[:12]], dtype=float)
    np.testing.assert_array_equal(line(figure, "complete"), [np.arange(12), values])
    number, best = line(figure, "best so far")
    np.testing.assert_array_equal(best[:12], [values[: k + 1].min() for k in range(12)])
    # it lasts to the end of the study, whatever became of the last trials
    assert (number[-1], best[-1]) == (17, values.min())
    # of a pruned trial its best epoch; a diverged one has none
    expected = [min(t.intermediate_values.values()) for t in made.trials[12:15]]
    np.testing.assert_array_equal(line(figure, "pruned (its best epoch)"), [[12, 13, 14], expected])
    np.testing.assert_array_equal(line(figure, "best"), [[values.argmin()], [values.min()]])


def test_one_diverged_trial_does_not_flatten_the_others_and_is_told() -> None:
    made = study(12)
    values = [t.value for t in made.trials]
    made.add_trial(create_trial(state=TrialState.COMPLETE, value=1e6))
    figure = plots.history(made)
    low, high = figure.axes[0].get_ylim()
    assert low < min(v for v in values if v is not None)
    assert high < 100
    assert figure.axes[0].get_title(loc="right").endswith("of 13 trials lie above")
    assert pixels(figure).std() > 5
    even = optuna.create_study()
    for k in range(8):
        even.add_trial(create_trial(state=TrialState.COMPLETE, value=1 + k / 8))
    figure = plots.history(even)
    assert figure.axes[0].get_title(loc="right") == ""
    assert figure.axes[0].get_ylim()[1] > 1 + 7 / 8


@pytest.mark.parametrize("made", [study(0), study(0, pruned=3, failed=2)], ids=["empty", "no complete trial"])
def test_without_a_complete_trial_both_pictures_say_so(made: optuna.Study) -> None:
    for draw, match in ((plots.history, "No trial ran to its end"), (plots.importance, "Importance")):
        figure = draw(made)
        assert match in texts(figure)
        assert figure.axes == []
        assert pixels(figure).min() < 128  # the note is there


def test_a_single_trial_has_a_history() -> None:
    figure = plots.history(study(1))
    np.testing.assert_array_equal(line(figure, "complete")[0], [0])
    assert pixels(figure).std() > 2


def test_importance_finds_the_setting_that_matters() -> None:
    figure = plots.importance(study(30, pruned=4, failed=1))
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    shares = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert sorted(names) == ["model.dropout", "training.lr", "training.schedule"]
    assert names[-1] == "training.lr"  # the longest bar is on top
    assert shares[-1] > 0.7
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares)
    assert "30 complete trials" in axes.get_title(loc="right")
    assert pixels(figure).std() > 5


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: study(3), "at least four complete trials that differ: there are 3"),
        (lambda: study(8, only_lr=True), "this study searched fewer than two"),
    ],
)
def test_importance_says_why_it_cannot_tell(make: Callable[[], optuna.Study], match: str) -> None:
    assert match in texts(plots.importance(make()))


def test_importance_of_trials_that_are_all_alike_is_not_told() -> None:
    made = optuna.create_study()
    for k in range(6):
        params = {"training.lr": 10.0 ** -(1 + k / 3), "model.dropout": k / 12}
        space: dict[str, optuna.distributions.BaseDistribution] = {"training.lr": LR, "model.dropout": DROPOUT}
        made.add_trial(create_trial(params=params, distributions=space, value=1.0))
    assert "at least four complete trials that differ: there are 1" in texts(plots.importance(made))
