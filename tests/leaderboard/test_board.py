"""A board: its protocol, what failed, what was stopped, and who else works on it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from deeplense.errors import UserError
from deeplense.leaderboard import claims, leaderboard, run
from deeplense.leaderboard.board import read_board
from deeplense.leaderboard.claims import Watch, claimed
from deeplense.leaderboard.measure import interval_over_seeds

SMALL: dict[str, Any] = {"model.kwargs": {"widths": [8, 16], "depths": [1, 1]}}
BOARD: dict[str, Any] = {
    "recipe": "quickstart",
    "common": {"training.batch_size": 16, "training.lr": 0.01},
    "budget": {"images": 128},
    "seeds": [0, 1],
    "ideal": {"auc": 1.0},
    "entries": {
        "small": SMALL,
        "separable": {**SMALL, "model.name": "depthwise", "budget": {"images": 64}},
        "nowhere": {"model.name": "resnot18"},
    },
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "board.yaml"
    path.write_text(yaml.safe_dump(BOARD | changes, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def made(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deeplense.leaderboard.measure._onnx_rate", lambda *_: 100.0)  # exported elsewhere
        leaderboard(write(folder), folder / "out", tiny_dataset)
    return folder / "out"


def test_every_entry_has_its_budget_and_its_row(made: Path) -> None:
    rows = json.loads((made / "leaderboard.json").read_text())["entries"]
    assert {row["name"] for row in rows} == {"small", "separable", "nowhere"}
    assert rows[-1]["name"] == "nowhere"
    assert "resnot18" in rows[-1]["failed"]
    by_name = {row["name"]: row for row in rows}
    assert (by_name["small"]["epochs"], by_name["small"]["images_seen"]) == (2, 128)
    assert by_name["separable"]["epochs"] == 1
    assert rows[0]["auc"] >= rows[1]["auc"]
    for row in rows[:2]:
        assert row["seeds"] == 2
        assert row["auc"] == pytest.approx(np.mean(row["each"]))
        assert row["ci"][0] <= row["auc"] <= row["ci"][1]
        assert row["share"] == pytest.approx((row["auc"] - 0.5) / 0.5)
        assert len(row["curves"][0]) == row["epochs"]
    with open(made / "leaderboard.csv") as file:
        assert [line["entry"] for line in csv.DictReader(file)] == [row["name"] for row in rows]
    page = (made / "index.html").read_text()
    assert "nowhere" in page
    assert page.count("data:image/png") == 4
    assert (made / "leaderboard.md").read_text().count("\n") == 3


def test_a_finished_board_trains_nothing_and_a_new_entry_only_itself(
    made: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deeplense.leaderboard.measure._onnx_rate", lambda *_: None)
    leaderboard(write(tmp_path), made, tiny_dataset)
    assert "[" not in capsys.readouterr().out.split("|")[0]
    more = {"entries": BOARD["entries"] | {"third": {**SMALL, "training.optimizer": "lion", "training.lr": 0.001}}}
    leaderboard(write(tmp_path, **more), made, tiny_dataset)
    told = capsys.readouterr().out
    assert told.count("third, seed") == 2
    assert "small, seed" not in told
    with pytest.raises(UserError, match="another recipe, splits or common settings"):
        leaderboard(write(tmp_path, common={"training.lr": 0.02}), made, tiny_dataset)


def test_a_stopped_board_goes_on(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = write(tmp_path, entries={"small": SMALL, "more": SMALL}, seeds=[0])
    monkeypatch.setattr("deeplense.leaderboard.measure._onnx_rate", lambda *_: None)
    trained: list[str] = []
    really = run.train

    def train(recipe: Any, data: Any, out: Path, **kwargs: Any) -> Path:
        if trained == ["small"]:
            trained.append("stopped")
            raise KeyboardInterrupt
        trained.append(out.parent.parent.name)
        return really(recipe, data, out, **kwargs)

    monkeypatch.setattr(run, "train", train)
    with pytest.raises(KeyboardInterrupt):
        leaderboard(board, tmp_path / "out", tiny_dataset)
    assert not list(tmp_path.rglob("claim.json"))
    leaderboard(board, tmp_path / "out", tiny_dataset)
    assert trained == ["small", "stopped", "more"]


def test_a_claim_is_one_process_s_and_a_dead_one_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.02)
    monkeypatch.setattr(claims, "PATIENCE", 0.3)
    claim, watch = tmp_path / "a" / "claim.json", Watch()
    with claimed(claim) as mine, claimed(claim) as again:
        assert (mine, again) == (True, False)
        assert not watch.dead(claim)
        first = claim.read_text()
        while claim.read_text() in (first, ""):
            run.time.sleep(0.02)
        assert not watch.dead(claim)
    assert not claim.exists()
    assert not watch.dead(claim)
    claim.write_text("of a process that was killed")
    assert not watch.dead(claim)
    run.time.sleep(0.35)
    assert watch.dead(claim)
    watch.take_over(claim)
    with claimed(claim) as mine:
        assert mine


def test_intervals_are_of_images_and_of_seeds() -> None:
    draw = np.random.default_rng(0)
    truth = draw.uniform(size=400)
    close = [{"truth": truth, "mean": truth + 0.1 * draw.standard_normal(400)} for _ in range(3)]
    low, high = interval_over_seeds(close)
    mean = np.mean([np.abs(s["mean"] - truth).mean() for s in close])
    # of images alone, each seed has .06/√400; three seeds on the same images are not independent of one another
    assert low < mean < high
    assert 0.004 < high - low < 0.03
    far = [*close[:2], {"truth": truth, "mean": truth + 0.3}]
    wide = interval_over_seeds(far)
    assert wide[1] - wide[0] > 5 * (high - low)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"entries": {}}, "entries is missing"),
        ({"entries": {"a/b": {}}}, "letters, digits"),
        ({"entries": {"a": 3}}, "give settings of the recipe"),
        ({"entries": {"a": {"seed": 3}}}, "the same for all"),
        ({"entries": {"a": {"simulation.size": 16}}}, "the same for all"),
        ({"entries": {"a": {"budget": {"hours": 1}}}}, r"give \{images: 100000\}"),
        ({"budget": {"images": -1}}, "positive"),
        ({"budget": None}, "budget is None"),
        ({"seeds": []}, "list of whole numbers"),
        ({"ideal": {"auk": 1}}, "give auc or mae"),
        ({"common": {"training.lear": 1}}, "did you mean 'lr'"),
        ({"entrys": {}}, "did you mean 'entries'"),
        ({"recipe": "quickstrat"}, "quickstart"),
    ],
)
def test_boards_that_make_no_sense_are_refused_in_one_line(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read_board(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_no_board_and_no_network_at_all(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such board"):
        read_board(tmp_path / "none.yaml")
    board = write(tmp_path, entries={"a": {"model.name": "resnot18"}})
    with pytest.raises(UserError, match="no entry could be trained; the first says: "):
        leaderboard(board, tmp_path / "out", tiny_dataset)
