"""Recipes: what may be written, what comes of it, and what a mistake is told."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense import config, trees
from deeplense.errors import UserError
from deeplense.recipe import Recipe, Training
from deeplense.sim.world import World


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def fails(match: str, source: Any, *overrides: str) -> str:
    """One line, and no other kind of error."""
    with pytest.raises(UserError, match=match) as caught:
        config.load_recipe(source, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("galaxies")
@pytest.mark.parametrize("name", config.shipped())
def test_every_shipped_recipe_loads_and_builds_its_world(name: str) -> None:
    recipe = config.load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    world = World(recipe.simulation)
    assert len(world.classes) == len(set(world.classes)) >= 1
    assert world.size == recipe.simulation.size
    # complete text gives the same recipe back, whatever its base was
    assert config.load_recipe(yaml.safe_load(config.dump(recipe))) == recipe


def test_shipped_names_are_the_files_of_the_package() -> None:
    root = Path(config.__file__).parent / "recipes"
    files = {p.relative_to(root).as_posix().removesuffix(".yaml") for p in root.rglob("*") if p.is_file()}
    assert set(config.shipped()) == files
    assert {"quickstart", "model_1", "model_2", "model_3", "legacy/model_1", "legacy/model_2"} <= files


@pytest.mark.parametrize(
    ("override", "path", "hint"),
    [
        ("trainig.lr=1", "recipe", "training"),
        ("training.epoch=1", "training", "epochs"),
        ("simulation.source.R_sersik=1", "simulation.source", "R_sersic"),
        ("simulation.cosmology.h0=70", "simulation.cosmology", "H0"),
        ("simulation.classes.cmd.number=3", "simulation.classes", "cdm"),
    ],
)
def test_an_unknown_key_on_the_command_line_names_its_section_and_the_nearest(
    override: str, path: str, hint: str
) -> None:
    message = fails("has no key", "model_2", override)
    assert message.startswith(f"{path} has no key '")
    assert f"did you mean '{hint}'?" in message
    assert "known: " in message


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("simulaton: {size: 32}", "recipe has no key 'simulaton'", "simulation"),
        ("training: {epoch: 3}", "recipe.training has no key 'epoch'", "epochs"),
        ("simulation: {lens: {theta_e: 1.0}}", "recipe.simulation.lens has no key 'theta_e'", "theta_E"),
        ("simulation.lens.theta_e: 1.0", "simulation.lens has no key 'theta_e'", "theta_E"),
        ("simulation: {cosmology: {Omo: 0.3}}", "recipe.simulation.cosmology has no key 'Omo'", "Om0"),
    ],
)
def test_an_unknown_key_in_yaml_is_named_by_its_dotted_path(tmp_path: Path, text: str, path: str, hint: str) -> None:
    message = fails("has no key", write(tmp_path, f"base: model_2\n{text}\n"))
    assert message.startswith(path)
    assert f"did you mean '{hint}'?" in message


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"training": {"epochs": "many"}}, "recipe.training.epochs is 'many', but should be int"),
        ({"training": {"epochs": 1.5}}, "recipe.training.epochs is 1.5, but should be int"),
        ({"training": {"d": 3, "lr": 1}}, "recipe.training has no key 'd'"),
        ({"training": {"calibrate": 3}}, "recipe.training.calibrate is 3, but should be bool"),
        ({"training": {"lr": None}}, "recipe.training.lr is null"),
        ({"training": 3}, "recipe.training must be a mapping of keys, not 3"),
        ({"simulation": {"lens": {"theta_E": [1, 2]}}}, r"recipe.simulation.lens.theta_E is \[1, 2\]"),
        ({"simulation": {"noise": "twice"}}, "recipe.simulation.noise is 'twice'"),
        ({"splits": {"train": "all"}}, "recipe.splits.train is 'all', but should be int"),
        ({"splits": None}, "recipe.splits is null"),
        ({"name": 3}, "recipe.name is 3, but should be str"),
        ({"seed": -1}, r"recipe.seed is -1; it must lie in \[0, "),
        ({"simulation": {"classes": {False: {"population": "none"}}}}, "classes has the key False; .* quotes"),
        ({1: 2}, "recipe has no key '1'"),
        ({"base": ["model_2"]}, r"base is \['model_2'\]"),
    ],
)
def test_a_wrong_value_is_named_by_its_dotted_path(tree: dict[Any, Any], message: str) -> None:
    fails(message, tree)


def test_a_recipe_states_only_what_differs_from_its_base(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "base: model_2\nname: mine\nsimulation: {source: {R_sersic: 0.5}}\ntraining:\n"
        "simulation.classes.cdm.number: 7\n",
    )
    mine, base = config.to_tree(config.load_recipe(path)), config.to_tree(config.load_recipe("model_2"))
    expected = copy.deepcopy(base)
    expected["name"] = "mine"
    expected["simulation"]["source"]["R_sersic"] = 0.5
    expected["simulation"]["classes"]["cdm"]["number"] = 7
    assert mine == expected
    # of three generations the youngest wins, and priors are replaced whole
    young = write(tmp_path, f"base: {path}\nsimulation: {{source: {{R_sersic: {{normal: [1, 0.1]}}}}}}\n", "young.yaml")
    expected["simulation"]["source"]["R_sersic"] = {"normal": [1, 0.1]}
    assert config.to_tree(config.load_recipe(young)) == expected


def test_classes_splits_and_search_space_are_replaced_whole() -> None:
    tree = {
        "base": "quickstart",
        "splits": {"train": 5},
        "simulation": {"classes": {"b": {"population": "none"}, "a": {"population": "none"}}},
        "tuning": {"space": {"training.lr": {"log": [1e-4, 1e-2]}}},
    }
    recipe = config.load_recipe(tree)
    assert recipe.splits == {"train": 5}
    assert list(recipe.simulation.classes) == ["b", "a"]
    assert list(recipe.tuning.space) == ["training.lr"]
    assert recipe.tuning.trials == 12  # the rest of the section is the base's
    assert "base" in tree  # the caller's mapping is left as it was


def test_a_circle_of_bases_is_shown(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(f"base: {b}\n")
    b.write_text(f"base: {a}\n")
    message = fails("runs in a circle", a)
    assert f"{b} -> {a} -> {b}" in message
    fails("no recipe 'model_22'.*did you mean 'model_2'", write(tmp_path, "base: model_22\n"))


def test_overrides_are_yaml_and_come_after_the_file() -> None:
    recipe = config.load_recipe(
        "model_2",
        [
            "training.lr=1e-2",
            "training.lr=3e-3",
            "simulation.lens.mass=2e12",
            "simulation.source.center_x={uniform: [-1e-1, 1e-1]}",
            "simulation.lens_light.magnitude=19",
            "simulation.classes.cdm.number.poisson=30",
            "name=a=b",
            "preprocess.crop=null",
        ],
    )
    assert recipe.training.lr == 3e-3
    assert recipe.simulation.lens.mass == 2e12
    assert recipe.simulation.source.center_x == {"uniform": [-0.1, 0.1]}
    assert recipe.simulation.lens_light is not None
    assert recipe.simulation.lens_light.magnitude == 19
    assert recipe.simulation.classes["cdm"]["number"] == {"poisson": 30}
    assert recipe.name == "a=b"
    assert recipe.preprocess.crop is None


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("training", "'training' is not an override; write key.sub=value"),
        ("training.lr={a", r"'training.lr=\{a': not valid YAML"),
        ("=3", "recipe has no key ''"),
        ("training.lr.x=3", "training.lr has no key 'x'"),
    ],
)
def test_a_bad_override(override: str, match: str) -> None:
    fails(match, "model_2", override)


@pytest.mark.parametrize("text", ["1e12", "1.0e12", "1E+12", "1.e12", "1000000000000", "+1e12"])
def test_powers_of_ten_are_numbers_wherever_they_stand(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"simulation.lens.mass: {text}\nsimulation.source.R_sersic: {{uniform: [1e-1, {text}]}}\n")
    simulation = config.load_recipe(path).simulation
    assert simulation.lens.mass == 1e12
    assert isinstance(simulation.lens.mass, float)
    assert simulation.source.R_sersic == {"uniform": [0.1, 1e12]}
    assert config.load_recipe({}, [f"simulation.lens.mass={text}"]).simulation.lens.mass == 1e12


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1\n\tb: 2", "not valid YAML"),
        ("- quickstart", "a recipe is a mapping"),
        ("quickstart", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("x: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str, match: str) -> None:
    assert str(tmp_path / "mine.yaml") in fails(match, write(tmp_path, text))


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x80")
    fails("x.yaml: not valid YAML", tmp_path / "x.yaml")
    fails("neither a file nor a shipped recipe.*did you mean 'quickstart'", "quikstart")
    fails("neither a file nor a shipped recipe", tmp_path)


def test_lookup_takes_a_name_and_imports_nothing() -> None:
    registry = {"one": 1}
    assert config.lookup(registry, "one", "thing") == 1
    for name in ("oen", "collections:OrderedDict"):
        with pytest.raises(UserError, match=rf"no thing '{name}'.*\(known: one\)"):
            config.lookup(registry, name, "thing")


def test_build_checks_any_dataclass() -> None:
    assert config.build(Training, {"lr": 1}, "here") == Training(lr=1.0)
    with pytest.raises(UserError, match="here has no key 'rl'"):
        config.build(Training, {"rl": 1}, "here")
    with pytest.raises(UserError, match=r"here\.lr is 'x', but should be float"):
        config.build(Training, {"lr": "x"}, "here")


names = st.one_of(
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20),
    st.sampled_from(["1e5", "-.5e3", "no", "null", "1_000", "0x10", "2026-01-01", "12:30", "~", "", " a", "a: b", "#"]),
)
numbers = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**9), 10**9))
priors = st.one_of(
    st.floats(-1000, 1000) | st.integers(-1000, 1000),
    st.dictionaries(st.sampled_from(["uniform", "normal"]), st.lists(numbers), min_size=1, max_size=1),
)


@settings(max_examples=60, deadline=None)
@given(
    name=names,
    description=names,
    seed=st.integers(0, 2**62),
    lr=numbers,
    prior=priors,
    splits=st.dictionaries(names, st.integers(1, 10**6), max_size=3),
    target=st.none() | st.sampled_from(["log10_m_axion", "source.center_x", "n_sub"]),
)
def test_any_recipe_survives_being_written_and_read(
    name: str, description: str, seed: int, lr: float, prior: Any, splits: dict[str, int], target: str | None
) -> None:
    recipe = Recipe(name=name, description=description, seed=seed, splits=splits)
    recipe.tuning.space = {"training.lr": {"choice": [lr]}}
    recipe.simulation.source.center_x = prior
    recipe.task.target = target
    tree = config.to_tree(recipe)
    assert tree == dataclasses.asdict(recipe)
    text = config.dump(recipe)
    assert text == config.dump(tree)
    read = trees.read_yaml(text, "text")
    assert read == tree
    assert config.load_recipe(read) == recipe


def test_a_written_recipe_is_a_recipe_file(tmp_path: Path) -> None:
    recipe = config.load_recipe("quickstart", ["training.lr=1e-5", "name='1e5'"])
    assert config.load_recipe(write(tmp_path, config.dump(recipe))) == recipe
