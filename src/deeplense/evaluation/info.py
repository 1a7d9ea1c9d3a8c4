"""`info`: what a dataset, a bundle or a recipe is, in a few lines."""

from __future__ import annotations

from pathlib import Path

from deeplense import bundle, config
from deeplense.data import generate, store
from deeplense.data.schema import ImageInfo
from deeplense.data.transforms import Preprocessor
from deeplense.errors import UserError
from deeplense.models import Context, build_trunk, probe
from deeplense.models.heads import task_heads
from deeplense.sim.world import World


def info(source: str | Path, verify: bool = False) -> str:
    """Describe a dataset, a bundle or a recipe; printed and returned.

    Args:
        source: a folder, a .safetensors file, or a recipe.
        verify: of a dataset, check every byte against its checksums.

    Raises:
        UserError: it is none of them, or damaged.
    """
    path = Path(source)
    if not path.exists() and str(source) not in config.shipped():
        raise UserError(
            f"{source}: no dataset, bundle or recipe of this name; {config.nearest(str(source), config.shipped())}"
        )
    if path.suffix == ".safetensors":
        lines = _bundle(path)
    elif path.is_dir():
        lines = _dataset(path, verify)
    elif verify:
        raise UserError(f"--verify checks a dataset; {source} is none")
    else:
        lines = _recipe(source)
    width = max(len(name) for name, _ in lines)
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
    print(text)
    return text


def _dataset(folder: Path, verify: bool) -> list[tuple[str, str]]:
    m = store.validate(folder, checksums=verify)
    scale = f"{m.image.pixel_scale:g}″ a pixel" if m.image.pixel_scale else "pixel scale unknown"
    return [
        ("dataset", m.name),
        ("source", m.source),
        ("images", ", ".join(f"{name} {n}" for name, n in m.splits.items())),
        ("shape", f"{m.image.channels} x {m.image.height} x {m.image.width}, {scale}, unit {m.image.unit}"),
        ("classes", ", ".join(m.classes) or "none"),
        (
            "parameters",
            ", ".join(p.name + (f" [{p.unit}]" if p.unit else "") for p in m.parameters) or "none",
        ),
        ("made by", f"deeplense {m.code_version}" if m.code_version else "unknown"),
        ("fingerprint", m.fingerprint[:16]),
        ("bytes", "every byte is as it was written" if verify else "not checked (--verify does)"),
    ]


def _bundle(path: Path) -> list[tuple[str, str]]:
    b = bundle.load(path, device="cpu")
    said = b.about().items()
    what = [", ".join(a["classes"]) if "classes" in a else f"{name} [{a['unit']}]" for name, a in said]
    return [
        ("bundle", b.recipe.name),
        ("predicts", "; ".join(what)),
        ("network", f"{b.recipe.model.name}, {sum(p.numel() for p in b.network.parameters()):,} parameters"),
        (
            "input",
            f"{b.image.channels} x {b.image.height} x {b.image.width}, {b.image.pixel_scale or '?'}″ a pixel",
        ),
        *((name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in b.summary.items()),
        ("data", b.fingerprint[:16]),
        ("made by", f"deeplense {b.code_version}"),
    ]


def _recipe(source: str | Path) -> list[tuple[str, str]]:
    r = config.load_recipe(source)
    world = World(r.simulation)
    heads = task_heads(r.task)
    task = "; ".join(f"{spec['kind']} {', '.join(spec.get('targets', []))}".strip() for spec in heads.values())
    info = ImageInfo(len(world.bands), world.size, world.size, world.pixel_scale, bands=world.bands)
    preprocess = Preprocessor(r.preprocess, info)
    parameters = generate.parameters(world)
    trunk = build_trunk(r.model, Context(info, preprocess, parameters, r.simulation))
    probe(trunk, r.model.name, preprocess.output_shape)
    instruments = list(dict.fromkeys((i.source, i.unverified) for i in world.instruments))
    bands = f"bands {', '.join(world.bands)}" if r.simulation.bands else r.simulation.instrument
    return [
        ("recipe", r.name),
        ("", r.description.strip()),
        ("classes", ", ".join(world.classes)),
        ("image", f"{world.size} x {world.size}, {world.pixel_scale}″ a pixel, {bands}"),
        *(("instrument", source) for source, _ in instruments),
        *(("experimental", f"not yet compared with its document: {what}") for _, what in instruments if what),
        ("noise", r.simulation.noise),
        *([] if world.selected is None else [("selected", f"{world.selected:.0%} of the lenses drawn")]),
        ("drawn", ", ".join(t.name for t in world.truth) or "nothing"),
        ("splits", ", ".join(f"{name} {n}" for name, n in r.splits.items())),
        ("task", task),
        ("network", r.model.name),
    ]
