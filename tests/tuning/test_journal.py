"""The journal: torn by a killed writer, damaged by anything, renamed; and what of a database is believed."""

from __future__ import annotations

import json
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from toy import fake, make, rows

from deeplense import config
from deeplense.errors import UserError
from deeplense.tuning import study
from deeplense.tuning.journal import Journal, open_journal

MADE = make(sampler="cmaes", pruner="hyperband", trials=7)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a study with complete, pruned and failed trials."""
    out, calls = tmp_path_factory.mktemp("study") / "s", 0

    def now_and_then(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("now and then")
        fake(*args, **kwargs)

    study.search(now_and_then, MADE, "sim", out)
    return (out / "journal.log").read_bytes()


def put(content: bytes, out: Path) -> Path:
    out.mkdir()
    (out / "journal.log").write_bytes(content)
    return out


@pytest.mark.parametrize(
    "end", [b'{"op_code":6,"wor', b"\0\0\0\0\0\0", b'{"op_code":6,"wor\n', b"\xff\xfe\n", b"[" * 9999]
)
def test_a_torn_last_line_is_set_aside_and_the_study_goes_on(
    end: bytes, journal: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = put(journal + end, tmp_path / "s")
    study.search(fake, MADE, "sim", out, trials=8)
    assert re.search(r"journal.log: its last line was torn.*set aside in journal.log.torn\n", capsys.readouterr().out)
    assert (out / "journal.log").read_bytes().startswith(journal)
    assert (out / "journal.log.torn").read_bytes() == end.rstrip(b"\n") + b"\n"
    assert sum(r["state"] in ("complete", "pruned") for r in rows(out)) == 8


def test_a_line_that_another_worker_left_torn_is_not_continued(journal: bytes, tmp_path: Path) -> None:
    """It died, or its disk was full, after this one had opened the study."""
    here = put(journal, tmp_path / "s") / "journal.log"
    storage = open_journal(here)
    with open(here, "ab") as file:
        file.write(b'{"op_code":8,"trial_id":')
    storage.set_study_user_attr(0, "key", "value")
    assert here.read_bytes().startswith(journal)
    assert json.loads(here.read_bytes()[len(journal) :])["user_attr"] == {"key": "value"}


def test_a_line_that_is_just_being_written_is_left_alone(journal: bytes, tmp_path: Path) -> None:
    here = put(journal, tmp_path / "s") / "journal.log"
    writer, line = Journal(here), b'{"op_code":2,"worker_id":"x","study_id":0,"user_attr":{"slow":true}}\n'
    writer.lock.acquire()
    with open(here, "ab", buffering=0) as file:
        file.write(line[:20])
        found: list[Any] = []
        reader = threading.Thread(target=lambda: found.append(open_journal(here)))
        reader.start()
        reader.join(0.3)  # it waits for the lock, or has not come so far
        file.write(line[20:])
    writer.lock.release()
    reader.join(300)
    assert found[0].get_study_user_attrs(0)["slow"] is True
    assert here.read_bytes() == journal + line
    assert not here.with_name("journal.log.torn").exists()


def test_the_lock_of_a_killed_writer_leads_to_the_file_that_tells_its_age(
    journal: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna waits for ever where it does not: the path of `--out` is mostly relative."""
    put(journal, tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    Journal(Path("s/journal.log")).lock.acquire()
    assert (tmp_path / "s/journal.log.lock").is_symlink()
    assert (tmp_path / "s/journal.log.lock").samefile(tmp_path / "s/journal.log")


@pytest.mark.parametrize(
    "line", [b"", b"5", b"{}", b"\xff", b'{"op_code":4', b'{"op_code":99,"worker_id":"x"}', b"[" * 9999]
)
def test_a_damaged_line_is_named(line: bytes, journal: bytes, tmp_path: Path) -> None:
    lines = journal.splitlines(keepends=True)
    lines.insert(6, line + b"\n")
    out = put(b"".join(lines), tmp_path / "s")
    for _ in range(2):
        with pytest.raises(UserError, match=r"journal.log: line 7 is damaged; .*cut it off before that line") as caught:
            study.search(fake, MADE, "sim", out, trials=8)
        assert "\n" not in str(caught.value)
        assert (out / "journal.log").read_bytes() == b"".join(lines)
    (out / "journal.log").write_bytes(b"".join(lines[:6]))
    study.search(fake, MADE, "sim", out)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, taken out, doubled or added, digits and words changed, or the end cut off."""
    data = bytearray(content)
    place = draw.randrange(len(data))
    match draw.randrange(6):
        case 0:
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 1:
            del data[place:]
        case 2:
            del data[place : place + draw.randint(1, 200)]
        case 3:
            data[place:place] = data[place : place + draw.randint(1, 200)]
        case 4:
            data += draw.randbytes(draw.randint(1, 50)) + draw.choice([b"", b"\n"])
        case 5:
            digits = [k for k, byte in enumerate(data) if chr(byte).isdigit()]
            data[draw.choice(digits)] = draw.choice(b"0123456789-.")
    return bytes(data)


def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes the time of a study of no training; none of it reads the journal."""
    build, built = config.build, dict[str, Any]()

    def remembered(kind: Any, tree: Any, *where: Any) -> Any:
        key = json.dumps([kind.__name__, tree])
        return built[key] if key in built else built.setdefault(key, build(kind, tree, *where))

    monkeypatch.setattr(config, "build", remembered)
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(study, "_draw", lambda *_: None)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_of_any_journal_there_is_a_result_or_one_line(
    sampler: str, journal: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_hurry(monkeypatch)
    draw, made, refusals = random.Random(7), make(sampler=sampler, trials=8), []
    for k in range(60):
        out = put(mutated(journal, draw), tmp_path / str(k))
        try:
            study.search(fake, made, "sim", out)
        except UserError as refused:
            refusals.append(str(refused))
    assert 10 < len(refusals) < 50
    assert not any("\n" in line for line in refusals)
    assert all("journal.log" in line or "holds another study" in line for line in refusals), refusals
