"""Nothing that a file says is imported or made by its name: every field of a recipe, through every way that one comes
in."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from safetensors.torch import load_file, save_file
from small import context, small_bundle

from deeplense import cli, config, typed
from deeplense.allow import allowed
from deeplense.data import generate
from deeplense.data.generate import Task, simulate
from deeplense.data.schema import ImageInfo, read_manifest
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.evaluation.info import info
from deeplense.evaluation.show import show
from deeplense.inference.runtime import OnnxBundle
from deeplense.models import build_trunk
from deeplense.recipe import Model, Recipe
from deeplense.sim.world import World

CLASSES = ["no_sub", "cdm", "axion"]
KWARGS: dict[str, Any] = {"widths": [8, 8], "depths": [1, 1]}
OWN = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
import os, subprocess
from dataclasses import dataclass
from torch import nn
from torch.nn import Linear
from deeplense.sim.substructure.point_masses import PointMasses

class Net(nn.Module):
    num_features = 2
    def __init__(self, in_chans, image_size, **kwargs):
        super().__init__()
        Path(__file__).with_name("made").touch()
        self.layer = nn.Linear(in_chans * image_size[0] * image_size[1], 2)
    def forward_features(self, x):
        return self.layer(x.flatten(1))
    forward = forward_features

@dataclass
class Halos(PointMasses):
    def __post_init__(self):
        super().__post_init__()
        Path(__file__).with_name("made").touch()
"""


class Door:
    """A module that nobody has imported, and whether anything has gone through it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[Any]()
        (folder / "my_own.py").write_text(OWN)

    @property
    def opened(self) -> bool:
        return bool(self.calls) or (self.folder / "imported").exists() or (self.folder / "made").exists()


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    folder = tmp_path / "own"
    folder.mkdir()
    found = Door(folder)
    monkeypatch.syspath_prepend(folder)

    class Recorder:
        def __init__(self, *arguments: Any, **more: Any) -> None:
            found.calls.append((arguments, more))

    monkeypatch.setattr(subprocess, "Popen", Recorder)
    monkeypatch.setattr(os, "system", found.calls.append)
    yield found
    sys.modules.pop("my_own", None)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's file."""
    path = tmp_path_factory.mktemp("bundle") / "b.safetensors"
    small_bundle(Recipe(model=Model(kwargs=KWARGS)), classes=CLASSES).save(path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = ["simulation.size=16", "splits={test: 3}"]
    return simulate("quickstart", tmp_path_factory.mktemp("data") / "d", workers=1, overrides=changes)


def trunk(name: str) -> Any:
    return build_trunk(Model(name), context(Recipe(), ImageInfo(1, 8, 8)))


def about_of(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["deeplense"])
    return found


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def with_value(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    config.set_path(tree, path, value)
    return tree


Ways = dict[str, Callable[[str, Any], object]]


@pytest.fixture
def ways(tmp_path: Path, stored: Path, exported: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Ways:
    """Every way in: each takes a dotted path of the recipe and its value, and does what a user would do with it."""
    complete, about, weights = config.to_tree(config.load_recipe("quickstart")), about_of(stored), load_file(stored)

    def use(recipe: Recipe) -> None:
        world = World(recipe.simulation)
        build_trunk(recipe.model, context(recipe, ImageInfo(len(world.bands), world.size, world.size)))

    def in_file(path: str, value: Any) -> None:
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "quickstart", **nested(path, value)}))
        info(tmp_path / "r.yaml")

    def in_base(path: str, value: Any) -> None:
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(with_value(complete, path, value)))
        use(config.load_recipe({"base": str(tmp_path / "base.yaml")}))

    def in_best(path: str, value: Any) -> None:
        (tmp_path / "best.yaml").write_text(yaml.safe_dump({"base": "quickstart", path: value}))
        use(config.load_recipe(tmp_path / "best.yaml"))

    def override(path: str, value: Any) -> None:
        use(config.load_recipe("quickstart", [f"{path}={json.dumps(value)}"]))

    def command_line(path: str, value: Any) -> None:
        with pytest.raises(SystemExit) as stop:  # at the latest because there are no data
            cli.main(["train", "quickstart", f"{path}={json.dumps(value)}", "--data", "none", "--out", "none"])
        assert stop.value.code == 2

    def in_bundle(path: str, value: Any) -> None:
        changed = about | {"recipe": with_value(about["recipe"], path, value)}
        save_file(weights, tmp_path / "b.safetensors", {"deeplense": json.dumps(changed)})
        info(tmp_path / "b.safetensors")

    def in_onnx(path: str, value: Any) -> None:
        model = onnx.load(exported)
        held = json.loads(model.metadata_props[0].value)
        model.metadata_props[0].value = json.dumps(held | {"recipe": with_value(held["recipe"], path, value)})
        onnx.save(model, tmp_path / "m.onnx")
        OnnxBundle(tmp_path / "m.onnx")

    def in_manifest(path: str, value: Any) -> None:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for file in dataset.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        manifest = read_manifest(folder)
        manifest.recipe = with_value(dict(manifest.recipe or {}), path, value)
        manifest.seal().write(folder)
        info(folder)
        show(folder, tmp_path / "one.png", id=str(Dataset(folder).split("test").ids[0]))

    return {f.__name__: f for f in (in_file, in_base, in_best, override, command_line, in_bundle, in_onnx, in_manifest)}


def leaves(cls: Any = Recipe, prefix: str = "") -> list[str]:
    """Dotted paths of all fields that are no sections."""
    found = []
    for name, hint in typed.fields(cls).items():
        inner = typed.dataclass_in(hint)
        found += leaves(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found


PROBES = [
    {"class_path": "subprocess.Popen", "init_args": {"args": "true", "shell": True}},
    {"class_path": "os.system", "init_args": {"command": "true"}},
    {"class_path": "my_own.Net"},
]
# what lies open to any mapping, and what may stand in it
OPEN = ("tuning.space", "model.kwargs", "simulation.psf", "simulation.classes", "simulation.bands",
        "simulation.source.colours", "simulation.lens.theta_E", "splits")  # fmt: skip
SHAPES: list[Callable[[Any], Any]] = [
    lambda probe: probe,
    lambda probe: {"uniform": probe, "gaussian": probe},
    lambda probe: {"training.lr": {"choice": [probe]}},
    lambda probe: {"cdm": {"population": "point_masses", "number": probe}, "a": {"population": probe}},
    lambda probe: {"no_sub": {"population": "none", "lens": probe}},
    lambda probe: {"g": {"psf": probe, "exposure_time": probe}},
    lambda probe: [probe],
]


def fine(work: Callable[[], object]) -> bool:
    """It works, or ends in one line."""
    try:
        work()
    except UserError as error:
        return "\n" not in str(error)
    return True


def test_every_field_is_tried() -> None:
    paths = leaves()
    assert {"name", "splits", "model.kwargs", "tuning.space", "simulation.lens.theta_E", "training.lr"} <= set(paths)
    assert all(any(p.startswith(o) for p in [*paths, *OPEN]) for o in OPEN)
    sections = [f for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(getattr(Recipe(), f.name))]
    assert all(any(p.startswith(f"{s.name}.") for p in paths) for s in sections)


@pytest.mark.parametrize("path", leaves())
def test_no_field_makes_an_object_of_what_names_one(path: str, door: Door) -> None:
    for probe in PROBES:
        for shape in SHAPES:
            with_section = {"simulation.cosmic_rays": {}, "simulation.lens_light": {}, "simulation.lens_envelope": {}}
            tree = {**{k: v for k, v in with_section.items() if path.startswith(k)}, path: shape(probe)}
            assert fine(lambda t=tree: World(config.load_recipe({"base": "quickstart", **t}).simulation))
    assert not door.opened


WAYS = ("in_file", "in_base", "in_best", "override", "command_line", "in_bundle", "in_onnx", "in_manifest")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", OPEN)
def test_no_way_in_makes_an_object_of_what_names_one(path: str, way: str, door: Door, ways: Ways) -> None:
    for probe in PROBES[::2]:
        for shape in SHAPES[:4]:
            assert fine(lambda s=shape, p=probe: ways[way](path, s(p)))
    assert not door.opened


def test_a_class_path_is_data_where_anything_may_stand(door: Door) -> None:
    recipe = config.load_recipe({"model": {"kwargs": {"x": PROBES[0]}}})
    assert recipe.model.kwargs == {"x": PROBES[0]}
    with pytest.raises(UserError, match="compact' does not take what the recipe gives it"):
        build_trunk(recipe.model, context(recipe))
    assert not door.opened


NAMES = ("my_own:Net", "torch.hub:load", "torch.nn:Linear", "timm.models.resnet:ResNet", "subprocess:Popen",
         "os:system", "deeplense.training.module:LensModule", "my_own.inner:Net")  # fmt: skip


@pytest.mark.parametrize("way", [w for w in WAYS if w not in ("command_line", "in_onnx", "in_manifest")])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_named_by_its_module_needs_allow(name: str, way: str, door: Door, ways: Ways) -> None:
    with pytest.raises(UserError, match=f"network '{name}' is code of its own; add --allow {name.partition(':')[0]} "):
        ways[way]("model.name", name)
    assert not door.opened


@pytest.mark.parametrize("way", [w for w in WAYS if w not in ("command_line", "in_onnx", "in_bundle")])
@pytest.mark.parametrize("name", ["my_own:Halos", "deeplense.sim.substructure.none:NoSubstructure", "subprocess:run"])
def test_a_population_named_by_its_module_needs_allow(name: str, way: str, door: Door, ways: Ways) -> None:
    match = f"population '{name}' is code of its own; add --allow {name.partition(':')[0]} "
    with pytest.raises(UserError, match=match):
        ways[way]("simulation.classes", {"a": {"population": name}})
    assert not door.opened


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("simulation.instrument", "my_own:Net"),
        ("simulation.z_lens", {"my_own:Net": [1, 2]}),
        ("simulation.bands", {"g": {"instrument": "my_own:Net"}}),
        ("training.schedule", "my_own:Net"),
        ("tuning.sampler", "my_own:Net"),
    ],
)
def test_only_networks_and_populations_can_be_of_a_user(path: str, value: Any, door: Door) -> None:
    with allowed("my_own"), pytest.raises(UserError):
        World(config.load_recipe("quickstart", [f"{path}={json.dumps(value)}"]).simulation)
    with pytest.raises(SystemExit):
        cli.main(["my_own:Net"])
    assert not door.opened


def test_a_module_that_was_allowed_is_taken(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["info", "recipe.yaml", "--allow", "my_own"]
    path = door.folder / "recipe.yaml"
    path.write_text("base: quickstart\nmodel.name: my_own:Net\nsimulation.classes.cdm.population: my_own:Halos\n")
    words[1] = str(path)
    with pytest.raises(SystemExit):
        cli.main(words[:2])
    assert not door.opened
    cli.main(words)
    assert "my_own:Net" in capsys.readouterr().out
    assert (door.folder / "made").exists()
    sys.modules.pop("my_own")
    with pytest.raises(UserError, match="add --allow my_own"):  # it held for that command alone
        World(config.load_recipe(path).simulation)


@pytest.mark.parametrize("name", ["os", "Linear", "subprocess", "Path", "none_such", "Halos", "Net.__init__", ""])
def test_of_an_allowed_module_only_what_can_serve_is_taken(name: str, door: Door) -> None:
    with allowed("my_own"), pytest.raises(UserError) as caught:
        trunk(f"my_own:{name}")
    assert "\n" not in str(caught.value)
    with allowed("my_own", "my_own_other"), pytest.raises(UserError, match="is code of its own"):
        trunk("my_ow:Net")
    with pytest.raises(UserError, match="give the name of a module"), allowed("my-own"):
        pass


def test_what_the_program_imported_itself_is_taken_unless_it_is_a_library(door: Door) -> None:
    import my_own  # type: ignore[import-not-found]

    (door.folder / "made").unlink(missing_ok=True)
    assert isinstance(trunk("my_own:Net"), my_own.Net)
    for name in ("my_own:Linear", "torch.nn:Linear", "my_own:os", "my_own:Path"):
        with pytest.raises(UserError, match=r"--allow|is not a network"):
            trunk(name)
    assert not door.calls


def test_workers_run_what_was_allowed_and_nothing_else(tmp_path: Path, door: Door, monkeypatch: Any) -> None:
    monkeypatch.undo()
    monkeypatch.syspath_prepend(door.folder)
    changes = ["simulation.size=16", "simulation.classes={a: {population: 'my_own:Halos'}}", "splits={a: 3, b: 3}"]
    with allowed("my_own"):
        out = simulate("quickstart", tmp_path / "d", workers=2, overrides=changes)  # two processes
    assert {s: len(Dataset(out).split(s).labels) for s in ("a", "b")} == {"a": 3, "b": 3}
    assert np.isfinite(Dataset(out).split("a").images(np.arange(3)).numpy()).all()
    sys.modules.pop("my_own")
    generate._world.cache_clear()
    tree, said = config.to_tree(config.load_recipe("quickstart", changes)), []
    for name, own in (("without", ()), ("with", ("my_own",))):
        (tmp_path / name).mkdir()
        task = Task(tree, str(tmp_path / name), "a", 0, 3, "torch", "cpu", own)
        shared = generate.Shared(str(tmp_path), generate._versions())
        # a thread knows nothing of what was allowed here, as a worker of a cluster
        thread = threading.Thread(target=lambda t=task, s=shared: said.append(generate.make_shard_elsewhere(t, s)))
        thread.start()
        thread.join()
    refused, made = said
    assert isinstance(refused, UserError)
    assert "add --allow my_own" in str(refused)
    assert made.n == 3


def test_the_command_line_makes_nothing_of_an_option(door: Door) -> None:
    for name, verb in cli.VERBS.items():
        function = verb.load()
        parser = cli._parser(name, verb, function, [])
        for action in parser._actions:
            for option in action.option_strings[:1]:
                for probe in PROBES:
                    with pytest.raises((SystemExit, UserError)):  # a needed argument is left out, or the value is none
                        cli.main([name, option, json.dumps(probe), "--none"])
    assert not door.opened
