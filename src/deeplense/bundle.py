"""The single file that a trained network is: weights, recipe, pre-processing, classes, target scaling, calibration.

Safetensors with JSON metadata: nothing is unpickled, nothing is found by importing what the file says, and any tool of
that format lists the weights. `docs/data_format.md` is the specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deeplense import config, format_1, trees
from deeplense.answers import ANSWERS, Prediction, output_name
from deeplense.data import schema
from deeplense.data.budget import printable
from deeplense.data.images import as_images
from deeplense.data.schema import ImageInfo, Parameter
from deeplense.data.transforms import Preprocessor
from deeplense.device import resolve_device
from deeplense.errors import UserError, brief
from deeplense.models import Context, build_network
from deeplense.models.bounded import at_most
from deeplense.models.heads import Head, HeadSpec
from deeplense.models.network import Network
from deeplense.models.out_of_distribution import OutOfDistribution
from deeplense.recipe import Recipe, Simulation

__all__ = ["FORMAT", "Bundle", "Prediction", "load", "resolve_device"]

FORMAT = 2
LAYERS = 20  # that a network has for each of its weights, at most

DETECTORS: dict[str, Any] = {"out_of_distribution": OutOfDistribution, "cells": format_1.Cells}


@dataclass
class Bundle:
    """A trained network with all that it needs.

    Attributes:
        detector: preprocessed images and features -> distance from the training images; above 1 is strange.
        specs: of the network's heads. classes: of the training data, in order. image: the raw images.
        parameters: of the training data. simulation: the world of the training data, if known.
        fingerprint: of the training data. summary: how training went. code_version: what trained it.
    """

    network: Network
    preprocess: Preprocessor
    detector: OutOfDistribution | format_1.Cells
    specs: list[HeadSpec]
    recipe: Recipe
    classes: list[str]
    image: ImageInfo
    parameters: list[Parameter] = dataclasses.field(default_factory=list)
    simulation: Simulation | None = None
    fingerprint: str = ""
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    code_version: str = ""

    @property
    def heads(self) -> dict[str, Head]:
        return self.network.each()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(iter(self.heads.values())).temperature.device

    def to(self, device: str | torch.device) -> Bundle:
        """Move to a device; returns itself."""
        for part in self.parts().values():
            part.to(device)
        return self

    def parts(self) -> dict[str, nn.Module]:
        """Every part that has weights or fitted numbers, by its name in the file."""
        network = self.network
        return {
            "preprocess": self.preprocess,
            "trunk": network.trunk,
            "heads": network.heads,
            "detector": self.detector,
        }

    def about(self) -> dict[str, dict[str, Any]]:
        """Name of each answer -> what is said of it; see `deeplense.answers`."""
        return {name: said for head in self.heads.values() for name, said in head.about().items()}

    def answers(self) -> dict[str, type]:
        """Name of each answer -> its type."""
        return {name: ANSWERS[said["answer"]] for name, said in self.about().items()}

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        # a copy, because tied or transposed weights cannot be stored as they are
        state = {
            f"{name}.{k}": v.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, part in self.parts().items()
            for k, v in part.state_dict().items()
        }
        about = {
            "format": FORMAT,
            "parts": list(self.parts()),
            "weights_sha256": _digest(state),
            "recipe": config.to_tree(self.recipe),
            "heads": [spec.tree() for spec in self.specs],
            "detector": next(name for name, kind in DETECTORS.items() if isinstance(self.detector, kind)),
            "classes": self.classes,
            "image": dataclasses.asdict(self.image),
            "parameters": [dataclasses.asdict(p) for p in self.parameters],
            "simulation": self.simulation and dataclasses.asdict(self.simulation),
            "fingerprint": self.fingerprint,
            "summary": self.summary,
            "code_version": self.code_version,
        }
        try:
            with schema.atomic(path) as temporary:
                save_file(state, temporary, metadata={"deeplense": json.dumps(about)})
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot write ({error}); free some space or choose another folder") from error

    def inputs(self, images: Tensor) -> Tensor:
        """Raw images as the network takes them, on the device."""
        x: Tensor = self.preprocess(images.to(self.device, torch.float32))
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def raw(self, images: Any, batch_size: int = 256) -> dict[str, Tensor]:
        """Outputs of each head, (N, n_out), on the CPU in float32; arguments as `predict`."""
        self.network.eval()
        parts = torch.split(as_images(images, self.image), batch_size)
        found = [{k: v.float().cpu() for k, v in self.network(self.inputs(part)).items()} for part in parts]
        return {name: torch.cat([f[name] for f in found]) for name in self.heads}

    @torch.no_grad()
    def outputs(self, images: Any, batch_size: int = 256) -> dict[str, NDArray[Any]]:
        """Every output by its name, as an exported network gives them; arguments as `predict`."""
        whole = Whole(self).eval()
        parts = torch.split(as_images(images, self.image), batch_size)
        found = [whole(part.to(self.device, torch.float32)) for part in parts]
        return {name: torch.cat([f[name].cpu() for f in found]).numpy() for name in found[0]}

    def predict(self, images: Any, batch_size: int = 256) -> Prediction:
        """What the bundle says of images.

        Args:
            images: (N, C, H, W) raw pixels, or (N, H, W), (C, H, W), (H, W), channels last; a torch, NumPy or astropy
                array of any number type.

        Raises:
            UserError: images of another shape than the training images.
        """
        return Prediction.of(self.about(), self.outputs(images, batch_size))


class Whole(nn.Module):
    """Raw images (N, C, H, W) -> every output by its name: what a prediction and an exported network compute."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.preprocess, self.trunk = bundle.preprocess, bundle.network.trunk
        self.back = Back(bundle)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.preprocess(images).contiguous(memory_format=torch.channels_last)
        return self.back(x, self.trunk(x))  # type: ignore[no-any-return]


class Back(nn.Module):
    """What follows the trunk: preprocessed images and features -> every output by its name."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        # a list, because the exporter writes code that a head's name, such as `class`, may spoil
        self.heads = nn.ModuleList(bundle.heads.values())
        self.detector, self.about = bundle.detector, bundle.about()

    def forward(self, x: Tensor, features: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for head in self.heads:
            assert isinstance(head, Head)
            for answer, outputs in head.outputs(head(features)).items():
                found |= {output_name(self.about, answer, name): value for name, value in outputs.items()}
        return {**found, "distance": self.detector(x, features)}


def load(path: str | Path, device: str = "auto") -> Bundle:
    """Read a bundle and rebuild its network.

    Raises:
        UserError: no such file, no bundle, a damaged one, or one of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such bundle; give the bundle.safetensors that training wrote")
    try:
        with safe_open(path, framework="pt") as file:
            about = trees.read_json((file.metadata() or {}).get("deeplense", "null"), "its metadata")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or no bundle ({error}); copy it again or train again") from error
    if not isinstance(about, dict):
        raise UserError(f"{path}: not a bundle of deeplense; give the bundle.safetensors that training wrote")
    version = about.get("format")
    if version not in (1, FORMAT):
        raise UserError(
            f"{path}: bundle format {brief(version)}, this code reads {FORMAT}; train it again, or use deeplense "
            f"{printable(str(about.get('code_version') or 'of its time'))}"
        )
    target_device = resolve_device(device)
    try:
        if version == 1:
            about, state = format_1.upgraded(about, state)
        elif about["weights_sha256"] != _digest(state):
            raise UserError("its weights are damaged; copy it again or train again")
        bundle = _rebuild(about, state)
    except UserError as error:
        # what it quotes may be anything
        raise UserError(f"{path}: cannot be rebuilt: {printable(str(error))}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = printable(" ".join(str(error).split())[:160])
        raise UserError(f"{path}: its weights do not fit its recipe ({why}); train it again") from error
    bundle.network.eval().to(memory_format=torch.channels_last)
    return bundle.to(target_device)


def _rebuild(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> Bundle:
    made = config.build(Recipe, about["recipe"], "recipe")
    image = schema.image_info(about["image"])
    parameters = [Parameter(**p) for p in about["parameters"]]
    simulation = about["simulation"] and config.build(Simulation, about["simulation"], "simulation")
    preprocess = Preprocessor(made.preprocess, image)
    specs = [HeadSpec.of(tree) for tree in about["heads"]]
    context = Context(image, preprocess, parameters, simulation)
    network = _network(made, specs, about["classes"], context, state)
    if about["detector"] not in DETECTORS:
        raise UserError(f"no detector '{about['detector']}'; one of {', '.join(DETECTORS)}")
    num_features: Any = network.trunk.num_features
    bundle = Bundle(
        network,
        preprocess,
        DETECTORS[about["detector"]](preprocess.output_shape, num_features),
        specs,
        made,
        about["classes"],
        image,
        parameters,
        simulation,
        about["fingerprint"],
        about["summary"],
        about["code_version"],
    )
    if sorted(about["parts"]) != sorted(bundle.parts()):
        raise UserError(f"it has the parts {', '.join(about['parts'])}, this code knows {', '.join(bundle.parts())}")
    for name, part in bundle.parts().items():
        part.load_state_dict(_of(state, name))
    return bundle


def _network(
    made: Recipe, specs: Sequence[HeadSpec], classes: list[str], context: Context, state: Mapping[str, Tensor]
) -> Network:
    """The network, once it is known without memory of its own that the file's weights fill it."""
    model = dataclasses.replace(made.model, pretrained=False)
    try:
        with torch.device("meta"), at_most(LAYERS * (1 + len(state))):
            shapes = build_network(model, specs, classes, context, probed=False)
    except (NotImplementedError, RuntimeError):
        # a few networks cannot be built so; a name alone does not ask for more than timm ships
        if model.kwargs:
            raise
    else:
        for name, part in (("trunk", shapes.trunk), ("heads", shapes.heads)):
            wanted, held = part.state_dict(), _of(state, name)
            wrong = [k for k in wanted if k not in held or wanted[k].shape != held[k].shape]
            if wrong or len(wanted) != len(held):
                raise UserError(
                    f"its weights do not fit its recipe ({name}: {(wrong or sorted(held))[0]}); train it again"
                )
    return build_network(model, specs, classes, context, probed=False)


def _of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{part}.")}


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}".encode())
        digest.update(state[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
