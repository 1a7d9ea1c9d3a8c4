"""What a reader must know before believing a report: notes, the dataset's card and the model's card."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeplense import config
from deeplense.answers import Classes, Value
from deeplense.bundle import Bundle
from deeplense.data.schema import Manifest
from deeplense.data.transforms import Preprocessor

Rows = list[tuple[str, str]]

NOISE_FREE = ("none", "doubled")
FAINT_CDM = ("model_1", "model_2", "model_3")


def notes(bundle: Bundle, manifest: Manifest, split: str) -> list[str]:
    """Cautions about this bundle on this dataset, most serious first."""
    found = []
    if split == "val" and manifest.fingerprint == bundle.fingerprint:
        found.append(
            "These are the images by which the epoch was chosen and the probabilities were calibrated: the figures are "
            "too good. Evaluate on the test split."
        )
    if split == "train" and manifest.fingerprint == bundle.fingerprint:
        found.append(
            "These are the images that the network was trained on: the figures say how well it remembers "
            "them, not how well it works. Evaluate on the test split."
        )
    simulation = (manifest.recipe or {}).get("simulation", {})
    if simulation.get("noise") in NOISE_FREE:
        found.append(
            f"The images carry no noise (simulation.noise: {simulation['noise']}): every figure here is a "
            "noise-free ceiling that no telescope reaches."
        )
    ours, theirs = bundle.image.pixel_scale, manifest.image.pixel_scale
    if ours is not None and theirs is not None and not math.isclose(ours, theirs, rel_tol=0.01):
        found.append(
            f"The images have {theirs:g}″ a pixel, the training images had {ours:g}″: to this network "
            f"everything is {ours / theirs:.2f} times its angular size."
        )
    names = {bundle.recipe.name, (manifest.recipe or {}).get("name", "")}
    if Classes in bundle.answers().values() and any(name.startswith(FAINT_CDM) for name in names):
        found.append(
            "With the right subhalo mass function (slope −1.9) 25 point masses carry about 3·10⁸ M☉, not the "
            "4·10¹⁰ M☉ of the published simulator, and cdm is nearly invisible in one image. A low AUC "
            "between cdm and no_sub is physics, and is given as it is."
        )
    return found


# kind of answer -> what a bundle does, and what it cannot know
TASK: dict[type, Callable[[Bundle, str], str]] = {
    Classes: lambda bundle, name: f"classify {', '.join(bundle.classes)}",
    Value: lambda bundle, name: f"regress {name}",
}
KNOWS: dict[type, Callable[[Bundle, str], str]] = {
    Classes: lambda bundle, name: (
        f"It knows only {', '.join(bundle.classes)} as its training data show them: an image of anything else still "
        "gets probabilities that sum to one."
    ),
    Value: lambda bundle, name: (
        f"It knows {name} only within its training data's prior and simulation; outside, its intervals mean nothing."
    ),
}


def limits(bundle: Bundle) -> list[str]:
    """Intended use of a bundle, and what it cannot know."""
    said = [
        "Intended use: comparing methods on simulated lenses, and triage of images like the training images. "
        "It is not a measurement of dark matter in a real lens.",
    ]
    said += [KNOWS[kind](bundle, name) for name, kind in bundle.answers().items()]
    if any(spec.get("lens") for spec in bundle.recipe.simulation.classes.values()):
        said.append(
            "Its recipe draws the macro lens from other priors in some classes, so a network can read the class off "
            "the smooth lens instead of the substructure."
        )
    elif _fixed_macro_lens(bundle.recipe.simulation.lens):
        said.append(
            "Its recipe keeps the macro lens the same in every image, so a network can read the class off "
            "the total mass (the Einstein radius) instead of the substructure."
        )
    told = [*bundle.answers(), *(bundle.classes if Classes in bundle.answers().values() else ())]
    if any("axion" in name for name in told):
        said.append(
            "The legacy axion masses (10⁻²⁴ to 10⁻²² eV) are excluded by VLBI, which rules out "
            "m ≤ 4.4·10⁻²¹ eV (arXiv 2302.10941): the class is a benchmark, not a forecast."
        )
    return said


def dataset_card(manifest: Manifest, folder: Path) -> Rows:
    """Name, origin and content of the dataset."""
    image = manifest.image
    scale = f"{image.pixel_scale:g}″ a pixel" if image.pixel_scale is not None else "pixel scale unknown"
    bands = f", bands {', '.join(image.bands)}" if image.bands else ""
    recipe = (manifest.recipe or {}).get("name")
    rows = [
        ("Name", manifest.name),
        ("Folder", folder.resolve().name),
        ("Source", f"simulated from recipe {recipe}" if recipe else manifest.source or "unknown"),
        ("Classes", ", ".join(manifest.classes) or "none"),
        ("Images", ", ".join(f"{n:,} {name}" for name, n in manifest.splits.items())),
        ("Format", f"{image.channels} × {image.height} × {image.width}, {scale}, unit {image.unit}{bands}"),
    ]
    rows += [(f"Parameter {p.name}", _parameter(p.prior, p.unit)) for p in manifest.parameters]
    return [
        *rows,
        ("Fingerprint", manifest.fingerprint),
        ("Made by", f"deeplense {manifest.code_version or '?'}"),
    ]


def model_card(bundle: Bundle, path: Path) -> Rows:
    """Network, training and pre-processing of a bundle."""
    recipe, summary = bundle.recipe, bundle.summary
    count = summary.get("parameters") or sum(p.numel() for p in bundle.network.parameters())
    task = "; ".join(TASK[kind](bundle, name) for name, kind in bundle.answers().items())
    temperatures = [f"{t:.3f}" for head in bundle.heads.values() for t in head.temperature.tolist()]
    rows = [
        ("Bundle", f"{path.resolve().parent.name}/{path.name}"),
        ("Recipe", recipe.name + (f": {recipe.description.strip()}" if recipe.description.strip() else "")),
        ("Task", task),
        ("Network", f"{recipe.model.name}, {count:,} parameters"),
        ("Pre-processing", _preprocess(bundle)),
        ("Temperature", f"{', '.join(temperatures)} (1: as trained; above 1: made less certain)"),
        ("Training data", bundle.fingerprint or "unknown"),
        ("Made by", f"deeplense {bundle.code_version or '?'}"),
    ]
    told = {k: v for k, v in summary.items() if k not in ("parameters", "temperature")}
    if told:
        rows.insert(4, ("Training", "; ".join(f"{k.replace('_', ' ')} {_value(v)}" for k, v in told.items())))
    return rows


def recipe_yaml(bundle: Bundle) -> str:
    """The resolved recipe."""
    return config.dump(bundle.recipe)


def _preprocess(bundle: Bundle) -> str:
    about, fitted = bundle.recipe.preprocess, bundle.preprocess
    steps = [f"centre crop to {about.crop}"] if about.crop else []
    steps += [f"resize by area to {about.size}"] if about.size else []
    if about.stretch != "none":
        scale = f" of scale {_numbers(fitted.scale)}" if isinstance(fitted, Preprocessor) else ""
        steps.append(f"{about.stretch} stretch{scale}")
    if about.normalise == "per_set" and isinstance(fitted, Preprocessor):
        steps.append(f"less {_numbers(fitted.mean)}, over {_numbers(fitted.std)}")
    elif about.normalise == "per_image":
        steps.append("each image to mean 0 and standard deviation 1")
    return ", ".join(steps) or "none"


def _numbers(values: Any) -> str:
    return " / ".join(f"{v:.4g}" for v in values.flatten().tolist())


def _parameter(prior: Any, unit: str) -> str:
    text = "prior unknown," if unit else "prior unknown"
    if isinstance(prior, dict) and prior:
        kind, arguments = next(iter(prior.items()))
        text = f"{kind} {arguments if isinstance(arguments, str) else _values(arguments)}"
    elif prior is not None:
        text = f"always {prior}"
    return f"{text} {unit}".strip()


def _values(values: Any) -> str:
    return f"[{', '.join(map(_value, values))}]" if isinstance(values, list) else _value(values)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fixed_macro_lens(lens: Any) -> bool:
    """A lens of constants; a recipe without one (imported data) does not say."""
    size = lens.theta_E if lens.theta_E is not None else lens.mass
    return isinstance(size, (int, float))
