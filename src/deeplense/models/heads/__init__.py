"""Heads: a trunk's features become probability distributions. To add one, see `deeplense.models.heads.base`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from deeplense import config, recipe
from deeplense.data.schema import Parameter
from deeplense.errors import UserError
from deeplense.models.heads.base import Head, Target, Truths
from deeplense.models.heads.categorical import CategoricalHead
from deeplense.models.heads.flow import FlowHead
from deeplense.models.heads.mixture import MixtureHead
from deeplense.models.heads.normal import NormalHead, TruncatedNormalHead
from deeplense.models.heads.student_t import StudentTHead

__all__ = ["HEADS", "Head", "HeadSpec", "Target", "build_head", "head_specs"]

HEADS: dict[str, Callable[..., Head]] = {
    "categorical": CategoricalHead,
    "normal": NormalHead,
    "truncated_normal": TruncatedNormalHead,
    "student_t": StudentTHead,
    "mixture": MixtureHead,
    "flow": FlowHead,
}
SHORT = {"classify": "categorical", "regress": "normal"}  # what a recipe may say in place of a key of HEADS


@dataclass
class HeadSpec:
    """A head as a recipe says it, resolved.

    Attributes:
        kind: a key of `HEADS`. targets: what it regresses. weight: of its loss.
    """

    name: str
    kind: str
    targets: list[Target] = field(default_factory=list)
    weight: float = 1.0

    def tree(self) -> dict[str, Any]:
        """For a bundle's metadata."""
        return asdict(self)

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> HeadSpec:
        return cls(tree["name"], tree["kind"], [Target(**t) for t in tree["targets"]], tree["weight"])


def task_heads(task: recipe.Task) -> dict[str, dict[str, Any]]:
    """The heads that a task asks for: `task.heads`, or what `kind` and `target` are short for.

    Raises:
        UserError: a head that makes no sense, or a regression without a target.
    """
    if not task.heads:
        if task.kind == "classify":
            return {"class": {"kind": "classify"}}
        targets = [name.strip() for name in (task.target or "").split(",") if name.strip()]
        if not targets:
            raise UserError("task.target is missing: name the parameter to regress, e.g. task.target=log10_m_axion")
        return {"value": {"kind": "regress", "targets": targets}}
    for name, spec in task.heads.items():
        where = f"task.heads.{name}"
        if not name.isidentifier():
            raise UserError(f"{where}: a head's name is a plain word")
        if not isinstance(spec, dict):
            raise UserError(f"{where} is {spec!r}; write {{kind: regress, targets: [theta_E]}}")
        for key in spec:
            if key not in ("kind", "targets", "weight"):
                raise UserError(
                    f"{where} has no key '{key}'; {config.nearest(str(key), ('kind', 'targets', 'weight'))}"
                )
        if spec.get("kind") not in (*HEADS, *SHORT):
            raise UserError(
                f"{where}.kind is {spec.get('kind')!r}; {config.nearest(str(spec.get('kind')), [*SHORT, *HEADS])}"
            )
        targets = spec.get("targets", [])
        if not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
            raise UserError(f"{where}.targets is {targets!r}; give a list of parameters")
        weight = spec.get("weight", 1.0)
        if not (isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < float("inf")):
            raise UserError(f"{where}.weight is {weight!r}; it must be a positive number")
    return task.heads


def head_specs(task: recipe.Task, targets: Mapping[str, Target]) -> list[HeadSpec]:
    """The heads of a task, resolved: `regress` is truncated where all its priors are bounded.

    Args:
        targets: of every parameter that a head names.
    """
    specs = []
    for name, spec in task_heads(task).items():
        mine = [targets[t] for t in spec.get("targets", [])]
        kind = SHORT.get(spec["kind"], spec["kind"])
        if spec["kind"] == "regress" and all(t.low is not None for t in mine):
            kind = "truncated_normal"
        specs.append(HeadSpec(name, kind, mine, float(spec.get("weight", 1.0))))
    answers = [a for s in specs for a in ([t.name for t in s.targets] or [s.name])]
    if twice := [a for a in answers if answers.count(a) > 1]:
        raise UserError(f"task.heads: '{twice[0]}' is answered twice; one head a target")
    return specs


def build_head(spec: HeadSpec, num_features: int, classes: Sequence[str], parameters: Sequence[Parameter]) -> Head:
    """A head with fresh weights.

    Raises:
        UserError: a kind of head that this code does not know, or truths that it cannot take.
    """
    if spec.kind not in HEADS:
        raise UserError(f"no head '{spec.kind}'; {config.nearest(spec.kind, HEADS)}")
    names = [p.name for p in parameters]
    columns = [names.index(t.name) for t in spec.targets]
    return HEADS[spec.kind](num_features, spec.name, Truths(list(classes), spec.targets, columns))
