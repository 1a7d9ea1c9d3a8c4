"""The single file that a trained network is: weights, recipe, pre-processing, classes, target scaling.

Safetensors with JSON metadata: nothing is unpickled, and any tool of that format lists the weights.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deeplense import config, trees
from deeplense.data import schema
from deeplense.data.familiarity import Familiarity
from deeplense.data.schema import ImageInfo
from deeplense.data.transforms import Preprocessor
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.models import build_network
from deeplense.models.heads import Head, Target, head_for
from deeplense.recipe import Recipe

__all__ = ["FORMAT", "Bundle", "Prediction", "Target", "load", "resolve_device"]

FORMAT = 1


@dataclass
class Prediction:
    """What a bundle says about N images.

    Attributes:
        raw: (N, n_out) outputs of the network.
        probabilities: (N, K) of the classes; None for a regressor.
        mean, scale, q05, q95: (N,) mean, standard deviation, 5 % and 95 % quantiles of the target, in its
            own unit; None for a classifier.
    """

    raw: Tensor
    probabilities: NDArray[np.float64] | None = None
    mean: NDArray[np.float64] | None = None
    scale: NDArray[np.float64] | None = None
    q05: NDArray[np.float64] | None = None
    q95: NDArray[np.float64] | None = None


@dataclass
class Bundle:
    """A trained network with all that it needs.

    Attributes:
        classes: of the training data, in order. image: shape and meaning of the raw images.
        fingerprint: of the training data. summary: how training went. code_version: what trained it.
    """

    network: nn.Module
    preprocess: Preprocessor
    head: Head
    familiarity: Familiarity
    recipe: Recipe
    classes: list[str]
    image: ImageInfo
    target: Target | None = None
    fingerprint: str = ""
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    code_version: str = ""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.head.temperature.device

    def to(self, device: str | torch.device) -> Bundle:
        """Move to a device; returns itself."""
        for part in self._parts().values():
            part.to(device)
        return self

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        about = {
            "format": FORMAT,
            "recipe": config.to_tree(self.recipe),
            "classes": self.classes,
            "image": dataclasses.asdict(self.image),
            "target": self.target and dataclasses.asdict(self.target),
            "fingerprint": self.fingerprint,
            "summary": self.summary,
            "code_version": self.code_version,
        }
        # a copy, because tied or transposed weights cannot be stored as they are
        state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in self._state().items()}
        try:
            with schema.atomic(path) as temporary:
                save_file(state, temporary, metadata={"deeplense": json.dumps(about)})
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot write ({error}); free some space or choose another folder") from error

    def _state(self) -> dict[str, Tensor]:
        return {f"{name}.{k}": v for name, part in self._parts().items() for k, v in part.state_dict().items()}

    def _parts(self) -> dict[str, nn.Module]:
        names = ("network", "preprocess", "head", "familiarity")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def raw(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Outputs of the network, on the CPU, computed on `device` in float32.

        Args:
            images: (N, C, H, W) raw pixels.

        Raises:
            UserError: images of another shape than the training images.
        """
        shape = (self.image.channels, self.image.height, self.image.width)
        if images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise UserError(f"images are {tuple(images.shape)}, this bundle takes (N, {', '.join(map(str, shape))})")
        self.network.eval()
        out = [torch.empty(0, self.head.n_out)]
        for part in torch.split(images, batch_size):
            x = self.inputs(part.to(self.device, torch.float32))
            out.append(self.network(x.contiguous(memory_format=torch.channels_last)).float().cpu())
        return torch.cat(out)

    def inputs(self, images: Tensor) -> Tensor:
        """Raw images as the network takes them."""
        return self.preprocess(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def distance(self, images: Tensor) -> NDArray[np.float64]:
        """(N,) how far raw images lie from the training images; above 1 the bundle cannot know them."""
        return _array(self.familiarity(self.preprocess(images.to(self.device, torch.float32))))

    @torch.no_grad()
    def predict(self, images: Tensor, batch_size: int = 256) -> Prediction:
        """Probabilities, or mean and interval; see `raw`."""
        raw = self.raw(images, batch_size)
        p = self.head.distribution(raw.to(self.device))
        if isinstance(p, torch.distributions.Categorical):
            return Prediction(raw, probabilities=_array(p.probs))
        q05, q95 = (_array(p.icdf(torch.tensor(q, device=self.device))) for q in (0.05, 0.95))
        return Prediction(raw, mean=_array(p.mean), scale=_array(p.stddev), q05=q05, q95=q95)


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
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged, or no bundle ({error}); copy it again or train again") from error
    if not isinstance(about, dict):
        raise UserError(f"{path}: not a bundle of deeplense; give the bundle.safetensors that training wrote")
    version = about.get("format")
    if version != FORMAT:
        raise UserError(
            f"{path}: bundle format {version}, this code reads {FORMAT}; train it again, or use deeplense "
            f"{about.get('code_version') or 'of its time'}"
        )
    target_device = resolve_device(device)
    try:
        bundle = _rebuild(about)
        for name, part in bundle._parts().items():
            part.load_state_dict({k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{name}.")})
    except UserError as error:
        raise UserError(f"{path}: cannot be rebuilt: {error}") from error
    except (KeyError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: its weights do not fit its recipe ({why}); train it again") from error
    bundle.network.eval().to(memory_format=torch.channels_last)
    return bundle.to(target_device)


def _rebuild(about: dict[str, Any]) -> Bundle:
    made = config.build(Recipe, about["recipe"], "recipe")
    image = ImageInfo(**about["image"])
    target = Target(**about["target"]) if about["target"] else None
    preprocess = Preprocessor(made.preprocess, image)
    head = head_for(made.task, about["classes"], target)
    fresh = dataclasses.replace(made.model, pretrained=False)
    return Bundle(
        build_network(fresh, preprocess.output_shape, head.n_out),
        preprocess,
        head,
        Familiarity(preprocess.output_shape),
        made,
        about["classes"],
        image,
        target,
        about["fingerprint"],
        about["summary"],
        about["code_version"],
    )


def _array(x: Tensor) -> NDArray[np.float64]:
    return x.double().cpu().numpy()
