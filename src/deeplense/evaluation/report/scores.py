"""What a bundle says about the images of a split, beside the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from deeplense.answers import Answer, Prediction
from deeplense.bundle import Bundle
from deeplense.data.store import Dataset, Split
from deeplense.errors import UserError
from deeplense.evaluation.report.base import Evaluation, Scores

BATCH = 256


def score(
    bundle: Bundle,
    dataset: Dataset,
    split: Split,
    evaluations: Mapping[type, Evaluation[Any]],
    name: str = "predict",
) -> dict[str, Scores[Answer]]:
    """Predict on every image of the split that has a truth; an answer without any truth there is left out.

    Args:
        name: shown beside the progress bar.

    Raises:
        UserError: images that are not the bundle's, or no image with any truth.
    """
    check_images(bundle, dataset)
    truths = _truths(bundle, dataset, split, evaluations)
    known = {answer: np.isfinite(t) & (t != -1 if t.dtype.kind == "i" else True) for answer, t in truths.items()}
    position = np.flatnonzero(np.any(list(known.values()), axis=0))
    raw: dict[str, list[torch.Tensor]] = {key: [] for key in bundle.heads}
    with tqdm(total=len(position), desc=name, unit="image", disable=None) as bar:
        for start in range(0, len(position), BATCH):
            here = position[start : start + BATCH]
            for key, out in bundle.raw(split.images(here)).items():
                raw[key].append(out)
            bar.update(len(here))
    found: dict[str, Scores[Answer]] = {}
    for head_name, head in bundle.heads.items():
        joined = torch.cat(raw[head_name])
        for answer in head.about():
            if answer not in truths:
                continue
            rows = np.flatnonzero(known[answer][position])
            mine, truth = joined[torch.from_numpy(rows)].to(bundle.device), truths[answer][position[rows]]
            said = Prediction.of({answer: head.about()[answer]}, _outputs(head, answer, mine))[answer]
            log_p, pit = head.judge(answer, mine, torch.from_numpy(truth).to(bundle.device))
            found[answer] = Scores(answer, said, position[rows], truth, _array(log_p), _array(pit))
    return found


@torch.no_grad()
def _outputs(head: Any, answer: str, raw: torch.Tensor) -> dict[str, NDArray[Any]]:
    return {name: value.cpu().numpy() for name, value in head.outputs(raw)[answer].items()}


def _truths(
    bundle: Bundle, dataset: Dataset, split: Split, evaluations: Mapping[type, Evaluation[Any]]
) -> dict[str, NDArray[Any]]:
    """Of every answer of which the split knows any; what is wrong with the first one is raised when none is known."""
    found, wrong = {}, []
    for name, kind in bundle.answers().items():
        try:
            truth = evaluations[kind].truth(bundle, name, dataset, split)
        except UserError as error:
            wrong.append(error)
            continue
        if (np.isfinite(truth) & (truth != -1 if truth.dtype.kind == "i" else True)).any():
            found[name] = truth
        else:
            what = "label" if truth.dtype.kind == "i" else f"'{name}'"
            wrong.append(
                UserError(f"{dataset.folder}: no image of split '{split.name}' has a {what}; choose another split")
            )
    if not found:
        raise wrong[0]
    return found


def check_images(bundle: Bundle, dataset: Dataset) -> None:
    """Raises: UserError: the dataset's images are not such as the bundle takes."""
    mine, theirs = bundle.image, dataset.manifest.image
    if (mine.channels, mine.height, mine.width) != (theirs.channels, theirs.height, theirs.width):
        raise UserError(
            f"{dataset.folder}: images are {theirs.channels} x {theirs.height} x {theirs.width}, the bundle "
            f"takes {mine.channels} x {mine.height} x {mine.width}; evaluate on such data, or train on these"
        )


def _array(x: torch.Tensor) -> NDArray[np.float64]:
    return x.double().cpu().numpy()
