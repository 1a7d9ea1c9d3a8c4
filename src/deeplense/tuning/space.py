"""The search space: dotted recipe path -> range, checked whole before any trial starts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from deeplense import config
from deeplense.errors import UserError
from deeplense.recipe import Recipe

EXAMPLE = "tuning.space={training.lr: {log: [0.0001, 0.01]}}"


class Dimension:
    """One searched path.

    Attributes:
        path: dotted path into the recipe.
        distribution: what Optuna draws from.
    """

    distribution: FloatDistribution | IntDistribution | CategoricalDistribution

    def __init__(self, path: str, spec: Any) -> None:
        self.path = path
        if not isinstance(spec, dict) or len(spec) != 1 or next(iter(spec)) not in KINDS:
            raise UserError(
                f"tuning.space.{path} is {spec!r}; give one of {', '.join(KINDS)}, as {{log: [1e-4, 1e-2]}}"
            )
        kind, values = next(iter(spec.items()))
        if not isinstance(values, list):
            raise UserError(f"tuning.space.{path}.{kind} is {values!r}; it must be a list")
        self._choices = {_label(v): v for v in values}  # Optuna stores scalars only; a choice may be any YAML value
        self.distribution = KINDS[kind](f"tuning.space.{path}", values)

    def suggest(self, trial: optuna.Trial) -> Any:
        """Draw a value of the recipe's own type."""
        d = self.distribution
        if isinstance(d, FloatDistribution):
            return trial.suggest_float(self.path, d.low, d.high, log=d.log)
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.path, d.low, d.high)
        return self.value(trial.suggest_categorical(self.path, d.choices))

    def value(self, stored: Any) -> Any:
        """The recipe's value of what Optuna stores."""
        return self._choices[stored] if isinstance(self.distribution, CategoricalDistribution) else stored

    def holds(self, stored: Any) -> bool:
        """Whether Optuna may have stored this value."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return stored in d.choices
        return type(stored) in (int, float) and d.low <= stored <= d.high

    def examples(self) -> list[Any]:
        """Every choice, or the ends of the range, between which all is alike."""
        d = self.distribution
        return list(self._choices.values()) if isinstance(d, CategoricalDistribution) else [d.low, d.high]


def parse(recipe: Recipe, stored: bool) -> list[Dimension]:
    """The dimensions of `recipe.tuning.space`; `stored` says that the images come from a dataset on disk.

    Raises:
        UserError: an empty space, a path that the recipe does not have (the nearest is named), a bad range,
            a value of the wrong type, or a path whose change would not be seen or could not be compared.
    """
    if not recipe.tuning.space:
        raise UserError(f"recipe '{recipe.name}' has no tuning.space; say what to search, e.g. '{EXAMPLE}'")
    dimensions = [Dimension(path, spec) for path, spec in recipe.tuning.space.items()]
    tree = config.to_tree(recipe)
    for dimension in dimensions:
        section = dimension.path.partition(".")[0]
        if section in ("task", "tuning", "name", "description"):
            raise UserError(f"tuning.space.{dimension.path}: '{section}' is not a setting that a search can compare")
        for value in dimension.examples():
            config.build(Recipe, apply(tree, {dimension.path: value}), "recipe")
        if stored and section in ("simulation", "splits"):
            raise UserError(f"tuning.space.{dimension.path}: changes nothing on a stored dataset; use --data sim")
    return dimensions


def apply(tree: config.Tree, settings: dict[str, Any]) -> config.Tree:
    """A copy of a recipe's tree with `settings` (dotted path -> value) set."""
    tree = copy.deepcopy(tree)
    for path, value in settings.items():
        config.set_path(tree, path, value)
    return tree


def _label(value: Any) -> str | int | float | bool | None:
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _ends(where: str, values: list[Any]) -> tuple[Any, Any]:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not numbers or not values[0] < values[1]:
        raise UserError(f"{where} is {values!r}; write [low, high] with low < high")
    return values[0], values[1]


def _float(where: str, values: list[Any]) -> FloatDistribution:
    low, high = _ends(where, values)
    return FloatDistribution(low, high)


def _log(where: str, values: list[Any]) -> FloatDistribution:
    low, high = _ends(where, values)
    if low <= 0:
        raise UserError(f"{where} is {values!r}; a logarithmic range must start above 0")
    return FloatDistribution(low, high, log=True)


def _int(where: str, values: list[Any]) -> IntDistribution:
    low, high = _ends(where, values)
    if low != int(low) or high != int(high):
        raise UserError(f"{where} is {values!r}; the ends of an int range must be whole numbers")
    return IntDistribution(int(low), int(high))


def _choice(where: str, values: list[Any]) -> CategoricalDistribution:
    if not values:
        raise UserError(f"{where} is empty; list the values to choose from")
    return CategoricalDistribution([_label(v) for v in values])


KINDS: dict[str, Callable[[str, list[Any]], FloatDistribution | IntDistribution | CategoricalDistribution]] = {
    "float": _float,
    "log": _log,
    "int": _int,
    "choice": _choice,
}
