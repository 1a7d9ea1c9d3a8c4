"""A bundle that nobody has trained, for tests of what is done with bundles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deeplense.bundle import Bundle
from deeplense.data.schema import ImageInfo, Parameter
from deeplense.data.transforms import Preprocessor
from deeplense.models import Context, build_network
from deeplense.models.heads import HeadSpec
from deeplense.models.out_of_distribution import OutOfDistribution
from deeplense.models.pixel_statistics import PixelStatistics
from deeplense.recipe import Recipe

CLASSES = ["axion", "cdm", "no_sub"]
IMAGE = ImageInfo(1, 16, 16, 0.1, "counts")


def context(recipe: Recipe, image: ImageInfo = IMAGE, parameters: Sequence[Parameter] = ()) -> Context:
    return Context(image, Preprocessor(recipe.preprocess, image), list(parameters), recipe.simulation)


def small_bundle(
    recipe: Recipe,
    specs: Sequence[HeadSpec] = (HeadSpec("class", "categorical"),),
    classes: Sequence[str] = CLASSES,
    image: ImageInfo = IMAGE,
    parameters: Sequence[Parameter] = (),
) -> Bundle:
    """Fresh weights from one seed, fitted on noise."""
    torch.manual_seed(0)
    shape = (20, image.channels, image.height, image.width)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocessor.fit(recipe.preprocess, image, [images])
    about = Context(image, preprocess, list(parameters), recipe.simulation)
    network = build_network(recipe.model, specs, classes, about).eval()
    x = preprocess(images)
    statistics = PixelStatistics.fit(x)
    with torch.no_grad():
        detector = OutOfDistribution.fit(statistics, statistics(x), network.features(x))
    rest = (image, list(parameters), recipe.simulation, "print", {"epochs": 3}, "0.1")
    return Bundle(network, preprocess, detector, list(specs), recipe, list(classes), *rest)
