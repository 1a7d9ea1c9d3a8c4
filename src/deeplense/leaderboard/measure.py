"""What is measured of one training: how good it is on the test split, what it costs, how fast it answers."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense import bundle as bundles
from deeplense.answers import Classes
from deeplense.bundle import Bundle
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.evaluation import metrics
from deeplense.evaluation.report.evaluate import EVALUATIONS
from deeplense.evaluation.report.scores import score
from deeplense.recipe import Recipe

RESAMPLES = 200  # of one training's interval; the board's own is over all seeds
TIMED = 256  # images


def core_seconds() -> float:
    """Spent by this process and its children so far."""
    return sum(
        r.ru_utime + r.ru_stime
        for r in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def judge(path: Path, dataset: Dataset) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A bundle on the test split: its numbers, and what it said of each image."""
    made = bundles.load(path, "cpu")
    scored = score(made, dataset, dataset.split("test"), EVALUATIONS)
    first = next(iter(scored.values()))
    found = EVALUATIONS[type(first.answer)].measure(made, first, dataset, 0)
    numbers: dict[str, Any] = {
        "parameters": sum(p.numel() for p in made.network.parameters()),
        "nll": found["nll"],
        "best_epoch": made.summary["best_epoch"],
    }
    if isinstance(first.answer, Classes):
        numbers |= {"auc": found["auc"]["macro"], "accuracy": found["accuracy"], "ece": found["ece"]}
        said = {"probabilities": first.answer.probabilities}
    else:
        numbers |= {"mae": found["mae"], "rmse": found["rmse"], "coverage_90": found["coverage"]["0.9"]}
        said = {"mean": first.answer.mean}
    return numbers | speeds(made, dataset), said | {"truth": first.truth}


def speeds(made: Bundle, dataset: Dataset) -> dict[str, float | None]:
    """Images a second of one core, whole predictions; None where the network has no form in ONNX."""
    images = dataset.split("test").images(np.arange(min(TIMED, len(dataset.split("test")))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch_rate = _rate(lambda: made.predict(images, 64), len(images))
    finally:
        torch.set_num_threads(threads)
    return {"images_s_torch": torch_rate, "images_s_onnx": _onnx_rate(made, images.numpy())}


def _onnx_rate(made: Bundle, images: NDArray[np.float32]) -> float | None:
    try:
        from deeplense.inference.export import export
        from deeplense.inference.runtime import OnnxBundle

        with tempfile.TemporaryDirectory() as folder:
            made.save(Path(folder) / "b.safetensors")
            network = OnnxBundle(export(Path(folder) / "b.safetensors", Path(folder) / "m.onnx"), threads=1)
            return _rate(lambda: [network.predict(images[k : k + 64]) for k in range(0, len(images), 64)], len(images))
    except (UserError, ImportError):
        return None


def _rate(work: Any, n: int) -> float:
    work()
    best = min(_seconds(work) for _ in range(3))
    return n / best


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def epochs_for(recipe: Recipe, budget: dict[str, float], data: Path, n_train: int, folder: Path) -> int:
    """How many epochs a budget buys, at least one; of core-seconds by two short trainings on this machine."""
    if "images" in budget:
        return max(1, round(budget["images"] / n_train))
    return max(1, int(budget["core_seconds"] / _core_seconds_an_epoch(recipe, data, folder)))


def _core_seconds_an_epoch(recipe: Recipe, data: Path, folder: Path) -> float:
    from deeplense import config
    from deeplense.training.fit import train

    def spent(epochs: int) -> float:
        start = core_seconds()
        tree = config.to_tree(recipe)
        tree["training"]["epochs"] = epochs
        train(tree, data, folder / f"timed-{epochs}", device="cpu")
        return core_seconds() - start

    # what is spent once, before and after the epochs, cancels
    one = spent(1)
    return max(spent(2) - one, 1e-3)


def interval_over_seeds(said: list[dict[str, NDArray[Any]]], seed: int = 0) -> list[float]:
    """90 % of the mean over trainings of macro AUC or MAE, over images drawn anew and trainings drawn anew."""
    truth = said[0]["truth"]
    draw = np.random.default_rng(seed)
    found = []
    for weights in metrics.resample(truth if "probabilities" in said[0] else np.zeros(len(truth)), RESAMPLES, seed):
        each = np.array([_of(s, weights) for s in said])  # (seeds, resamples of this part)
        chosen = draw.integers(len(said), size=each.shape)
        found.append(np.take_along_axis(each, chosen, 0).mean(0))
    return metrics.interval(np.concatenate(found))


def _of(said: dict[str, NDArray[Any]], weights: NDArray[Any]) -> NDArray[np.float64]:
    if "probabilities" in said:
        return np.asarray(np.nanmean(metrics.class_auc(said["probabilities"], said["truth"], weights), axis=1))
    return np.asarray(weights @ np.abs(said["mean"] - said["truth"]) / len(said["truth"]))
