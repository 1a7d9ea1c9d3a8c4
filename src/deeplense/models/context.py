"""What a trunk may know of the images that it sees. A trunk that has an argument `context` is given it."""

from __future__ import annotations

from dataclasses import dataclass, field

from deeplense import recipe
from deeplense.data.schema import ImageInfo, Parameter
from deeplense.data.transforms import Preprocessor


@dataclass
class Context:
    """The data behind a training.

    Attributes:
        image: the raw images: size, pixel scale, bands.
        preprocess: from them to the trunk's input; its `view` says where that input's pixels lie.
        parameters: columns of `Batch.params`.
        simulation: the world that the images come from (PSF, instrument, priors); None when unknown.
    """

    image: ImageInfo
    preprocess: Preprocessor
    parameters: list[Parameter] = field(default_factory=list)
    simulation: recipe.Simulation | None = None
