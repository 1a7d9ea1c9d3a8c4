"""The search space: what it accepts, and what it says of what it does not."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from deeplense.errors import UserError
from deeplense.recipe import Recipe, Tuning
from deeplense.tuning import space


def recipe(**paths: Any) -> Recipe:
    return Recipe(tuning=Tuning(space={path.replace("__", "."): spec for path, spec in paths.items()}))


def test_draws_stay_in_their_ranges_and_have_the_recipes_types() -> None:
    dimensions = space.parse(
        recipe(
            training__lr={"log": [1e-4, 1e-2]},
            model__dropout={"float": [0, 0.5]},
            training__epochs={"int": [2, 5]},
            model__name={"choice": ["compact", "resnet10t"]},
            model__kwargs={"choice": [{}, {"widths": [8, 16]}]},
        ),
        stored=True,
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(40):
        trial = study.ask()
        drawn.append({d.path: d.suggest(trial) for d in dimensions})
    assert all(1e-4 <= s["training.lr"] <= 1e-2 for s in drawn)
    assert 5 < sum(s["training.lr"] < 1e-3 for s in drawn) < 35  # logarithmic: half below the middle decade
    assert {s["training.epochs"] for s in drawn} == {2, 3, 4, 5}
    assert {s["model.name"] for s in drawn} == {"compact", "resnet10t"}
    assert {str(s["model.kwargs"]) for s in drawn} == {"{}", "{'widths': [8, 16]}"}


def test_reaches_into_free_mappings() -> None:
    made = recipe(simulation__classes__cdm__number={"int": [5, 50]})
    made.simulation.classes["cdm"] = {"population": "point_masses", "number": 25}
    assert len(space.parse(made, stored=False)) == 1


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"training__lrr": {"log": [1e-4, 1e-2]}}, "did you mean 'lr'"),
        ({"trainin__lr": {"log": [1e-4, 1e-2]}}, "did you mean 'training'"),
        ({"training__lr": {"log": [1e-2, 1e-4]}}, "low < high"),
        ({"training__lr": {"log": [0, 1e-2]}}, "above 0"),
        ({"training__lr": {"float": [1e-2]}}, "low, high"),
        ({"training__lr": {"float": ["a", "b"]}}, "low, high"),
        ({"training__lr": {"log": 3}}, "must be a list"),
        ({"training__lr": {"log": [1, 2], "float": [1, 2]}}, "give one of"),
        ({"training__lr": {"logarithmic": [1, 2]}}, "give one of float, log, int, choice"),
        ({"training__lr": [1, 2]}, "give one of"),
        ({"training__epochs": {"int": [1.5, 3]}}, "whole numbers"),
        ({"training__epochs": {"float": [1.5, 3.5]}}, "training.epochs is 1.5"),
        ({"model__name": {"choice": []}}, "empty"),
        ({"training__schedule": {"choice": ["one_cycle", "two_cycle"]}}, "training.schedule is 'two_cycle'"),
        ({"task__kind": {"choice": ["classify", "regress"]}}, "cannot compare|can compare"),
        ({"simulation__size": {"int": [32, 64]}}, "--data sim"),
        ({}, "no tuning.space"),
    ],
)
def test_bad_spaces_name_the_path_and_the_remedy(paths: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        space.parse(recipe(**paths), stored=True)
    assert "\n" not in str(caught.value)
    assert not paths or next(iter(paths)).split("__")[0] in str(caught.value)
