"""Files that are small and mean harm, or only a mistake: one line, at once, whatever they hold."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml

from deeplense import config, trees, typed
from deeplense.errors import UserError
from deeplense.evaluation.info import info
from deeplense.recipe import Model, Prior, Range, Recipe
from deeplense.sim.world import World

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 20)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def one_line(error: BaseException, most: int = 400) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < most
    return text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: &a [*a]", "levels deep, or within itself"),
        ("&a simulation: &b {lens: *b}", "levels deep, or within itself"),
        ("&a name: &a {b: *a}", "not valid YAML: found duplicate anchor"),
        ("name: " + "[" * 5000 + "]" * 5000, "levels deep"),
        ("name: " + "{a: " * 5000 + "}" * 5000, "levels deep"),
        ("name: " + "[" * 60 + "]" * 60, "levels deep"),
        (BOMB, "more than 10,000 values"),
        (f"simulation: {{lens: {{}}}}\n{BOMB}", "more than 10,000 values"),
        (MERGES, "a mapping of more than 10,000 keys|has no key 'a'"),  # PyYAML 6.0.4 merges equal keys once
        ("{" + ", ".join(f"k{k}: 0" for k in range(9000)) + "}", "more than 10,000 values"),
        ("{" + ", ".join(f"k{k}: 0" for k in range(10_100)) + "}", "more than 10,000 values"),
        ("a: &a x\nb: [" + "*a, " * 500 + "]", "more than 200 aliases"),
        ("a: [" + "1, " * 20_000 + "]", "more than 10,000 values"),
        (f"name: {'x' * 300_000}", "a recipe has 262,144 at most"),
        ("a: &a " + "x" * 10_000 + "\nb: [" + "*a, " * 150 + "]", "more than 10,000 values"),
        ("seed: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("seed: 0x" + "f" * 5000, "seed is a whole number of 20000 bits"),
        ("seed: 18446744073709551616", "seed is a whole number of 65 bits"),
        ("training: {lr: .nan}", r"training.lr is nan; give a finite number"),
        ("training: {lr: 1e999}", r"training.lr is inf"),
        ("simulation: {lens: {e1: {uniform: [0, .inf]}}}", r"lens.e1.uniform.1 is inf"),
        ("model: {kwargs: {x: -.inf}}", r"model.kwargs.x is -inf"),
        ("name: !!timestamp 2024-13-45", "not valid YAML: month must be in"),
        ("name: !!timestamp 2024-01-02", "name is of type date"),
        ("name: !!binary aGk=", "name is of type bytes"),
        ("name: !!set {a, b}", "name is of type set"),
        ('name: "a\\e[31mb"', r"name is 'a\\x1b\[31mb'; take the control characters out"),
        ("name: 3", "name is 3, but should be str"),
        ("? [a]\n: 3", "not valid YAML"),
    ],
)
def test_a_file_that_means_harm_is_one_line(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=match) as caught:
        config.load_recipe(tmp_path / "r.yaml")
    one_line(caught.value)
    (tmp_path / "child.yaml").write_text("base: " + str(tmp_path / "r.yaml"))
    with pytest.raises(UserError, match=match):
        config.load_recipe(tmp_path / "child.yaml")


@pytest.mark.parametrize("path", ["simulation", "name", "model.kwargs", "tuning.space", "base", "splits"])
def test_a_bomb_is_found_wherever_it_stands(path: str) -> None:
    value = "{a: &a [x, x, x, x, x, x, x, x, x, x], " + BOMB.split("\n", 1)[1].replace("\n", ", ") + "}"
    with pytest.raises(UserError, match="more than 10,000 values") as caught:
        config.load_recipe("quickstart", [f"{path}={value}"])
    one_line(caught.value)


def test_a_date_in_a_text_is_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: 2024-13-45\ndescription: 2024-01-02\n")
    recipe = config.load_recipe(tmp_path / "r.yaml")
    assert (recipe.name, recipe.description) == ("2024-13-45", "2024-01-02")
    (tmp_path / "again.yaml").write_text(config.dump(recipe))
    assert config.load_recipe(tmp_path / "again.yaml") == recipe
    assert yaml.safe_load(config.dump(recipe))["name"] == "2024-13-45"  # other readers see text as well


def deep(n: int) -> Any:
    tree: Any = 1
    for _ in range(n):
        tree = {"a": tree}
    return tree


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (deep(100_000), "levels deep"),
        ({"x": datetime.date(2024, 1, 1)}, "model.kwargs.x is of type date"),
        ({"x": math.nan}, "finite"),
        ({"x": 10**5000}, "bits"),
        ({"x": "\ud800"}, "control characters"),
        ({"x": {1: 2}}, "has the key 1; names are text"),
        ({"x": object()}, "of type object"),
    ],
)
def test_the_same_is_refused_from_python_and_metadata(kwargs: Any, match: str) -> None:
    for read in (config.load_recipe, lambda tree: config.build(Recipe, tree, "recipe")):
        with pytest.raises(UserError, match=match) as caught:
            read({"model": {"kwargs": kwargs}})
        one_line(caught.value, 2500)


def test_a_tree_within_itself_is_refused_from_python() -> None:
    tree: dict[str, Any] = {"model": {"kwargs": {}}}
    tree["model"]["kwargs"]["x"] = tree
    with pytest.raises(UserError, match="within itself"):
        config.load_recipe(tree)


def test_what_stands_in_two_places_is_changed_in_one(tmp_path: Path) -> None:
    classes = "{a: {population: cdm, sigma_sub: &s {uniform: [0, 1]}}, b: {population: cdm, sigma_sub: *s}}"
    (tmp_path / "r.yaml").write_text(f"simulation: {{classes: {classes}}}\n")
    recipe = config.load_recipe(tmp_path / "r.yaml", ["simulation.classes.a.sigma_sub.uniform=[2, 3]"])
    assert [c["sigma_sub"] for c in recipe.simulation.classes.values()] == [{"uniform": [2, 3]}, {"uniform": [0, 1]}]


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "[" * 100 + "]" * 100, "9" * 5000, "{", '"\\'])
def test_json_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="here: not valid JSON") as caught:
        trees.read_json(text, "here")
    one_line(caught.value)
    assert trees.read_json(json.dumps(deep(40)), "here") == deep(40)


def test_bases_cannot_go_on_for_ever(tmp_path: Path) -> None:
    for k in range(100):
        (tmp_path / f"{k}.yaml").write_text(f"base: {tmp_path / f'{k + 1}.yaml'}\n")
    (tmp_path / "100.yaml").write_text("name: last\n")
    with pytest.raises(UserError, match="16 recipes stand on this one"):
        config.load_recipe(tmp_path / "0.yaml")
    assert config.load_recipe(tmp_path / "90.yaml").name == "last"


@pytest.mark.parametrize("section", ["lens", "cosmology", "source", "cosmic_rays"])
@pytest.mark.parametrize("value", [3, [1], "text", True])
def test_a_section_that_is_none_is_one_line_under_a_dotted_key(section: str, value: Any) -> None:
    tree = {"base": "quickstart", "simulation": {section: value}, f"simulation.{section}.x": 1}
    with pytest.raises(UserError, match=r"simulation.*(has no key|must be a mapping)"):
        config.load_recipe(tree)


def numbers(cls: Any = Recipe, prefix: str = "") -> list[tuple[str, Any]]:
    """Path and type of every field that is a number, or a prior."""
    found = []
    for name, hint in typed.fields(cls).items():
        inner = typed.dataclass_in(hint)
        found += numbers(inner, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", hint)]
    return [(path, hint) for path, hint in found if {int, float} & set(typed.options(hint)) or Prior in (hint,)]


@pytest.mark.parametrize(("path", "hint"), numbers())
def test_every_number_has_a_range_and_keeps_it(path: str, hint: Any) -> None:
    assert "Range(" in str(hint), path
    section = path.rpartition(".")[0]
    base = {section: {}} if section in ("simulation.cosmic_rays", "simulation.lens_light") else {}
    for value in (-1e31, -10000, 1e31, "1", True, [1], math.nan):
        if path in ("training.lr", "preprocess.scale") and value == 1e31 and path == "training.lr":
            continue  # of a rate no largest is known
        with pytest.raises(UserError, match=rf"recipe\.{path}(\.\d)? is ") as caught:
            config.load_recipe({**base, path: value})
        one_line(caught.value)


def test_ranges_hold_their_ends() -> None:
    half, whole = Range(0, 1, "[)"), Range(0, 1)
    assert [half.holds(x) for x in (-0.1, 0, 0.5, 1)] == [False, True, True, False]
    assert [whole.holds(x) for x in (0, 1, 1.1)] == [True, True, False]
    assert [Range(0, math.inf, "()").holds(x) for x in (0, 1e300, math.nan)] == [False, True, False]
    assert (str(half), str(Range(0, 1e9, "(]"))) == ("[0, 1)", "(0, 1e+09]")
    hint = typed.fields(Model)["dropout"]
    assert hint == Annotated[float, half]


@pytest.mark.parametrize(
    "prior",
    [
        {"uniform": [-1e308, 1e308]}, {"normal": [0, 1e300]}, {"poisson": 1e30}, {"power_law": [1e-300, 1e6, -1.9]},
        {"power_law": [1, 1e20, 1e6]}, {"truncated_normal": [0, 1e-20, 1, 2]}, {"log_uniform": [0, 1]}, 1e300, {}, [],
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["simulation.z_source", "simulation.source.R_sersic", "simulation.lens.e1",
                                  "simulation.classes.cdm.number", "simulation.classes.axion.mass"])  # fmt: skip
def test_priors_that_overflow_are_one_line(path: str, prior: Any) -> None:
    with pytest.raises(UserError) as caught:
        World(config.load_recipe("quickstart", [f"{path}={json.dumps(prior)}"]).simulation)
    one_line(caught.value)


@pytest.mark.parametrize("path", ["simulation.classes.cdm.number", "simulation.classes.axion.number"])
def test_more_deflectors_than_memory_holds_are_refused(path: str) -> None:
    for number in (30_000, '{"poisson": 1e8}'):
        world = World(config.load_recipe("model_1", [f"{path}={number}"]).simulation)
        with pytest.raises(UserError, match="in one image, more than 20,000; lower it"):
            world.scenes(0, "test", 0)


@pytest.mark.parametrize("name", ["nothing", "no/such/folder", "none.safetensors", "none.yaml"])
def test_what_is_not_there_is_told_with_all_that_was_looked_for(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no dataset, bundle or recipe of this name"):
        info(name)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "/", "/dev/zero"])
def test_a_base_of_an_odd_name_is_one_line(name: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load_recipe({"base": name})
    one_line(caught.value, 800)
