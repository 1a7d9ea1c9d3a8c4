"""Two pictures of a study: its course, and which settings mattered."""

from __future__ import annotations

import math
import warnings

import numpy as np
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import TrialState

from deeplense.evaluation.plots import plain

METRIC = "validation loss [nat]"
BLUE, GREY, ORANGE = "#2b6cb0", "#a0aec0", "#c05621"


def history(study: optuna.Study) -> Figure:
    """Validation loss of every trial, the best so far, and where pruned trials stood."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    trials = study.get_trials(deepcopy=False)
    done = [(t.number, t.value) for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    cut = [(t.number, min(seen)) for t in trials if t.state == TrialState.PRUNED and (seen := _finite(t))]
    if not done:
        return _note(figure, "No trial ran to its end, so there is nothing to compare.")
    axes = figure.add_subplot()
    number, value = np.array(done).T
    best_so_far = np.minimum.accumulate(value)
    axes.step(
        [*number, trials[-1].number],
        [*best_so_far, best_so_far[-1]],
        where="post",
        color=BLUE,
        lw=1.5,
        label="best so far",
    )
    axes.plot(number, value, "o", color=BLUE, ms=5, label="complete")
    if cut:
        axes.plot(*np.array(cut).T, "x", color=GREY, ms=6, mew=1.5, label="pruned (its best epoch)")
    best = study.best_trial
    axes.plot(best.number, best.value, "o", ms=12, mfc="none", mec=ORANGE, mew=1.5, label="best")
    # one diverged trial must not flatten the rest
    every = np.array([v for _, v in done + cut])
    top = np.quantile(every, 0.75) + 3 * (np.quantile(every, 0.75) - every.min())
    if every.max() > top > every.min():
        margin = 0.06 * (top - every.min())
        axes.set_ylim(every.min() - margin, top + margin)
        outside = int((every > top + margin).sum())
        if outside:
            axes.set_title(f"{outside} of {len(every)} trials lie above", fontsize=9, color="0.4", loc="right")
    axes.set(xlabel="trial", ylabel=METRIC)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def importance(study: optuna.Study) -> Figure:
    """Share of the loss's variance that each setting explains (fANOVA, Hutter et al. 2014)."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    names = sorted({name for t in trials for name in t.params})
    values = [t.value for t in trials if t.value is not None]
    figure = Figure(figsize=(7, 1.4 + 0.4 * max(len(names), 4)), layout="constrained")
    if len(names) < 2:
        return _note(figure, "Importance compares settings: this study searched fewer than two.")
    if (different := len(set(values))) < 4 or max(values) - min(values) < 1e-12:
        return _note(figure, f"Importance needs at least four complete trials that differ: there are {different}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        share = optuna.importance.get_param_importances(study, evaluator=evaluator)
    axes = figure.add_subplot()
    order = sorted(share, key=lambda name: share[name])
    bars = axes.barh([plain(name) for name in order], [share[name] for name in order], color=BLUE, height=0.6)
    axes.bar_label(bars, [f"{share[name]:.2f}" for name in order], padding=4, fontsize=9)
    axes.set(xlabel=f"share of the variance of the {METRIC.split(' [')[0]}", xlim=(0, 1.1 * max(share.values())))
    axes.set_title(f"fANOVA over {len(values)} complete trials", fontsize=9, color="0.4", loc="right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _finite(trial: optuna.trial.FrozenTrial) -> list[float]:
    return [v for v in trial.intermediate_values.values() if math.isfinite(v)]


def _note(figure: Figure, text: str) -> Figure:
    figure.text(0.5, 0.5, text, ha="center", va="center", color="0.35")
    return figure
