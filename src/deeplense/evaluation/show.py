"""`show`: look at a recipe's world, a dataset, or one image with and without its noise and substructure."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deeplense import config, rng
from deeplense.data import schema
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.evaluation import inject as injection
from deeplense.evaluation import marks
from deeplense.evaluation.gallery import picture
from deeplense.evaluation.inject import Halo
from deeplense.evaluation.plots import plain
from deeplense.recipe import Recipe
from deeplense.sim import image
from deeplense.sim.lenses import Lenses
from deeplense.sim.macro import MACRO
from deeplense.sim.observe import observe
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

Array = NDArray[np.float32]
COLUMNS = 6
MARKED = ("without noise", "with the halo")  # what marks are drawn over
CLEAN_UNIT = "electron/s"  # of a rendered image before noise


def show(
    source: str | Path, out: str | Path, id: str | None = None, also: str | None = None, inject: str | None = None
) -> Path:
    """Draw a recipe's world, a dataset, or one image of it.

    Args:
        source: a dataset's folder, or a recipe.
        out: the picture to write (.png, .pdf, .svg).
        id: of one image; from a simulated dataset it is rendered again with and without noise and substructure.
        also: with `id`, of critical_curves, caustics, halos (over the noiseless image) and residual (of the stored
            image, less that of the lens without substructure), e.g. "critical_curves,halos".
        inject: "mass,x,y" or "mass,x,y,c" of one halo more, M200 [Msun], place [arcsec], c200: the lens of `id`, or the
            first of a recipe, without and with it, and the difference in units of the noise.

    Raises:
        UserError: no such dataset, recipe, id, kind of picture or mark, or a halo that makes no sense.
    """
    out = Path(out)
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"{out}: not a kind of picture; end it in .png, .pdf or .svg")
    names = marks.chosen(also)
    if not Path(source).exists() and str(source) not in config.shipped():
        raise UserError(
            f"{source}: no dataset, bundle or recipe of this name; {config.nearest(str(source), config.shipped())}"
        )
    halo = None if inject is None else injection.parse(inject)
    if (Path(source) / schema.MANIFEST).exists() or Path(source).is_dir():
        dataset = Dataset(source)
        marks.check_simulated(id is not None and dataset.manifest.recipe is not None, names)
        if halo is not None and (id is None or dataset.manifest.recipe is None):
            raise UserError(f"--inject {inject}: give --id of an image of a simulated dataset, whose lens is known")
        figure = _gallery_of_dataset(dataset) if id is None else _one_image(dataset, id, names, halo)
    elif id is not None:
        raise UserError(f"--id names an image of a dataset; {source} is a recipe")
    else:
        marks.check_simulated(False, names)
        figure = _gallery_of_recipe(source) if halo is None else _first_lens(source, halo)
    with schema.atomic(out) as temporary:
        figure.savefig(temporary, dpi=150)
    print(f"wrote {out}")
    return out


def _gallery_of_recipe(source: str | Path) -> Figure:
    recipe = config.load_recipe(source)
    world = World(recipe.simulation)
    rows = {}
    for scene in world.scenes(recipe.seed, "show", 0):
        rows[world.classes[scene.label]] = observe(world, scene[:COLUMNS], recipe.seed, "show").numpy()
    return _gallery(rows, recipe.name, world.pixel_scale, world.bands)


def _gallery_of_dataset(dataset: Dataset) -> Figure:
    manifest = dataset.manifest
    split = dataset.split(next(iter(manifest.splits)))
    names = dict(enumerate(manifest.classes)) or {}
    rows = {}
    for label in np.unique(split.labels):
        some = np.flatnonzero(split.labels == label)[:COLUMNS]
        rows[names.get(int(label), "unlabelled")] = split.images(some).numpy()
    return _gallery(rows, manifest.name, manifest.image.pixel_scale, manifest.image.bands)


def _gallery(rows: dict[str, Array], title: str, pixel_scale: float | None, bands: list[str]) -> Figure:
    """Images of each class; three channels or more make a colour picture."""
    figure = Figure(figsize=(1.6 * COLUMNS, 1.6 * len(rows) + 0.8), layout="constrained")
    figure.suptitle(plain(title))
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for k, axes in enumerate(line):
            axes.set(xticks=[], yticks=[])
            if k < len(images) and len(images[k]) >= 3:
                axes.imshow(picture(images[k], blue_first=bool(bands)), origin="lower")
            elif k < len(images):
                _draw(axes, images[k].mean(0))
            else:
                axes.axis("off")
        line[0].set_ylabel(plain(name))
    if pixel_scale:
        field = rows[next(iter(rows))].shape[-1] * pixel_scale
        shown = [bands[k] for k in (0, len(bands) // 2, -1)] if len(bands) >= 3 else []
        colours = f"; {', '.join(shown)} as blue, green, red" if shown else ""
        figure.supxlabel(plain(f"each image is {field:.2g}″ wide; asinh stretch{colours}"), fontsize=9)
    return figure


def _first_lens(source: str | Path, halo: Halo) -> Figure:
    """A recipe's first lens, with one halo more."""
    recipe = config.load_recipe(source)
    lens = World(recipe.simulation).draw(1, recipe.seed, "show")
    panels = injection.panels(lens, halo)
    title = f"{recipe.name} · {lens.classes[0]} · {halo}, χ = {injection.total(panels):.3g}"
    return _panels(panels, [title], lens.world.bands)


def _one_image(dataset: Dataset, id: str, also: Sequence[str] = (), halo: Halo | None = None) -> Figure:
    split, row = dataset.locate(id)
    manifest = dataset.manifest
    label = int(split.labels[row])
    name = manifest.classes[label] if label >= 0 else "unlabelled"
    truth = ", ".join(
        f"{p.name} = {v:.4g}" for p, v in zip(manifest.parameters, split.params[row], strict=True) if np.isfinite(v)
    )
    title = [f"{id} · {name}", truth]
    stored = split.images(np.array([row]))[0].numpy()
    panels, lens = {"stored": stored}, None
    if manifest.source == "simulated" and manifest.recipe is not None:
        recipe = config.build(Recipe, manifest.recipe, "recipe")
        if halo is not None:
            panels |= injection.panels(_lens(recipe, split.name, row), halo)
            title.append(f"{halo}, χ = {injection.total(panels):.3g}")
        else:
            panels |= _again(recipe, split.name, row)
        if marks.RESIDUAL in also and "without substructure" in panels:
            panels[marks.RESIDUAL] = stored - panels["without substructure"]
        lens = _lens(recipe, split.name, row) if set(also) & set(marks.MARKS) else None
    bands = manifest.image.bands or [f"channel {k}" for k in range(len(stored))]
    return _panels(panels, title, bands, manifest.image.unit, lens, also)


def _panels(
    panels: dict[str, Array],
    title: Sequence[str],
    bands: Sequence[str],
    unit: str = CLEAN_UNIT,
    lens: Lenses | None = None,
    also: Sequence[str] = (),
) -> Figure:
    """Images of one lens side by side, a row for each band. `unit`: of the noisy ones."""
    n = len(bands)
    figure = Figure(figsize=(3.3 * len(panels), 2.8 * n + 0.8), layout="constrained")
    lines = (textwrap.fill(line, 42 * len(panels)) for line in title)
    figure.suptitle(plain("\n".join(lines)), fontsize=10)
    grid = figure.subplots(n, len(panels), squeeze=False)
    for (k, row), (column, (what, channels)) in itertools.product(enumerate(grid), enumerate(panels.items())):
        axes = row[column]
        drawn = _draw(axes, channels[k], signed=what.startswith("effect") or what == marks.RESIDUAL)
        if lens is not None and what in MARKED:
            marks.mark(axes, lens, also)
        axes.set(xticks=[], yticks=[])
        if k == 0:
            axes.set_title(what, fontsize=10)
        if column == 0 and n > 1:
            axes.set_ylabel(plain(bands[k]))
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
        label = unit if what in ("stored", "rendered again") else CLEAN_UNIT
        bar.set_label("σ" if what.endswith("[σ]") else plain(label), fontsize=8)
        if isinstance(drawn.norm, AsinhNorm):  # its own ticks collide near zero
            ticks = np.asarray(drawn.norm.inverse(np.linspace(0, 1, 6))).tolist()
            bar.set_ticks(ticks, labels=[f"{tick if abs(tick) > 1e-6 * ticks[-1] else 0:.3g}" for tick in ticks])
            bar.minorticks_off()
    return figure


def _again(recipe: Recipe, split: str, index: int) -> dict[str, Array]:
    """Render an image anew: with its noise, without, without substructure, and what substructure does."""
    lens = _lens(recipe, split, index)
    world, scene = lens.world, lens.scenes[0]
    smooth = dataclasses.replace(scene, mass=[c for c in scene.mass if c.profile in MACRO])

    def clean(s: Scene) -> Array:
        s = s.to("cpu", torch.float64)
        seen = image.render(s, world.size, world.pixel_scale, world.instruments, recipe.simulation.supersampling)
        return seen[0].numpy().astype(np.float32)

    with_sub, without = clean(scene), clean(smooth)
    return {
        "rendered again": observe(world, scene, recipe.seed, split)[0].numpy(),
        "without noise": with_sub,
        "without substructure": without,
        "effect of substructure": with_sub - without,
    }


def _lens(recipe: Recipe, split: str, index: int) -> Lenses:
    """The one lens of an image."""
    world = World(recipe.simulation)
    scene = _find(world.scenes(recipe.seed, split, index // rng.BLOCK), index)
    return Lenses(world, [scene], recipe.seed, split)


def _find(scenes: list[Scene], index: int) -> Scene:
    for scene in scenes:
        at = torch.nonzero(scene.index == index)
        if len(at):
            return scene[at[:, 0]]
    raise UserError(f"scene {index} is not in its block; the dataset was made by another version of the code")


def _draw(axes: Axes, plane: Array, signed: bool = False):  # type: ignore[no-untyped-def]
    """One channel (H, W), y up: asinh-stretched, or signed around zero."""
    if signed:
        top = float(np.abs(plane).max()) or 1.0
        return axes.imshow(plane, origin="lower", cmap="RdBu_r", vmin=-top, vmax=top)
    low, high = np.nanpercentile(plane, [1, 99.8])
    norm = AsinhNorm(linear_width=(high - low) / 10 or 1.0, vmin=low, vmax=high if high > low else low + 1)
    return axes.imshow(plane, origin="lower", cmap="magma", norm=norm)
