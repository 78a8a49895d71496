"""Curves of runs: what was recorded is read, whichever version wrote it, and shown."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX import SummaryWriter

from stripseg.config.errors import ConfigError, DataError, StripsegError
from stripseg.report import curves
from stripseg.report.curves import Point, Run, bars, read_run, read_runs, text_charts
from stripseg.tool import curves as command
from stripseg.util.training.epoch_log import run_entry, write_epoch

LINE = (
    "2026-01-01 00:00:00,000 epoch {epoch}/2 step {position}/3 loss {loss:.4f} main 1.0000 "
    "auxiliary 1.0000 lr {lr:.6f} 0.250 s/step remaining 00:00:09\n"
)


def write_epochs(folder: Path, *, count: int = 2, cost: bool = True) -> Path:
    """A run's folder with `count` epochs of three steps."""
    folder.mkdir(parents=True)
    for epoch in range(1, count + 1):
        figures = {"train": {"loss": 2.0 / epoch, "mIoU": 0.1 * epoch}, "val": {"mIoU": 0.2}}
        spent = run_entry(
            step=3 * epoch,
            lr=0.01,
            seconds_per_step=0.5,
            images_per_second=4.0,
            peak_memory_gib=1.0,
        )
        entry = {**figures, **(spent if cost else {})}
        write_epoch(folder, epoch, entry, warn=pytest.fail)
    return folder


def write_log(path: Path, steps: range, *, lr: float = 0.01) -> None:
    lines = [
        LINE.format(epoch=s // 3 + 1, position=s % 3 + 1, loss=3.0 - s / 10, lr=lr) for s in steps
    ]
    path.write_text("note: something else\n" + "".join(lines), encoding="utf-8")


def test_epochs_are_read_with_what_they_cost(tmp_path: Path) -> None:
    folder = write_epochs(tmp_path / "shapes/one/model")
    for place in (folder, folder.parent, folder / "epochs.jsonl"):
        run = read_run(place, "one")
        assert run.curves["train/loss"] == [Point(1, 3, 2.0), Point(2, 6, 1.0)]
        assert run.curves["run/peak_memory_gib"][1] == Point(2, 6, 1.0)
        assert "run/version" not in run.curves


def test_the_log_tells_what_older_runs_did_not_record(tmp_path: Path) -> None:
    """Two logs of a run that was resumed at its third step: each step counts once."""
    folder = write_epochs(tmp_path / "old/model", cost=False)
    write_log(folder / "train-20260101_000000.log", range(4))
    write_log(folder / "train-20260102_000000.log", range(2, 6), lr=0.02)
    run = read_run(folder, "old")
    assert [p.step for p in run.curves["train_step/lr"]] == [1, 2, 3, 4, 5, 6]
    assert [p.value for p in run.curves["train_step/lr"]] == [0.01] * 2 + [0.02] * 4
    assert run.curves["train_step/seconds_per_step"][2] == Point(1.0, 3, 0.25)
    assert run.curves["train/loss"][0] == Point(1, None, 2.0)


def test_event_files_are_read_without_tensorboard(tmp_path: Path) -> None:
    folder = write_epochs(tmp_path / "run/model")
    for first, value in ((1, 1.0), (3, 2.0)):
        with SummaryWriter(str(folder), filename_suffix=f".{first}") as writer:
            writer.add_image("val/0", np.random.default_rng(0).random((3, 300, 300)), first)
            for step in range(first, first + 4):
                writer.add_scalar("val_iou/road", value, step)
    # names end in the second and the process: their order is that of the suffix here
    points = read_run(folder, "run").curves["val_iou/road"]
    assert [(p.step, p.value) for p in points] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)]
    assert points[2].epoch == 1.0
    whole = next(folder.glob("events*.3")).read_bytes()
    next(folder.glob("events*.3")).write_bytes(whole[:-20])
    assert len(read_run(folder, "run").curves["val_iou/road"]) == 5  # up to the damage
    file = next(folder.glob("events*.1"))
    assert set(read_run(file, "file").curves) == {"val_iou/road"}
    file.write_bytes(b"\xff" * 1000)
    assert len(read_run(folder, "run").curves["val_iou/road"]) == 3


def test_damaged_records_are_stepped_over(tmp_path: Path) -> None:
    folder = write_epochs(tmp_path / "run/model", count=1)
    with open(folder / "epochs.jsonl", "a", encoding="utf-8") as file:
        file.write(
            '{"epoch": 2, "train": {"loss": "high", "mIoU": true, "x": 1' + "0" * 400 + "}}\n"
        )
        file.write('{"epoch": 3, "train": {"loss": NaN}, "run": {"step": "?"}}\n{"epo')
    run = read_run(folder, "run")
    assert [point.epoch for point in run.curves["train/loss"]] == [1, 3]
    assert "last nan, best 2 (epoch 1)" in text_charts([run])


def test_runs_have_names_of_their_own(tmp_path: Path) -> None:
    one, two = (write_epochs(tmp_path / n / "camvid/spnet18/model") for n in ("a", "b"))
    assert read_runs([one])[0].name == "camvid/spnet18"
    assert [run.name for run in read_runs([one, two])] == [str(one), str(two)]


def test_a_place_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: no record of a training run there"):
        command.main([str(tmp_path / "absent")])


def test_charts_have_one_sign_for_every_value_up_to_their_width() -> None:
    assert bars([0, 1, 2, 3, 4, 5, 6, 7]).rstrip() == curves.BARS
    assert bars([0, 7], plain=True).rstrip() == "_#"
    assert bars([1.0, float("nan"), 2.0]).rstrip() == "▁?█"
    assert len(bars(range(1000))) == curves.WIDTH
    assert bars([3, 3]).rstrip() == "▁▁"
    assert bars([float("nan")]).rstrip() == "?"


def test_the_terminal_has_last_and_best_values() -> None:
    loss = [Point(1, 3, 0.9), Point(2, 6, 0.5), Point(3, 9, 0.7)]
    iou = [Point(1, 3, 0.1), Point(2, 6, 0.3), Point(3, 9, 0.2)]
    rate = [Point(1, 3, 0.1)]
    run = Run("mine", {"train/loss": loss, "val/mIoU": iou, "train_step/lr": rate})
    text = text_charts([run], plain=True)
    assert "last 0.7, best 0.5 (epoch 2)" in text
    assert "last 0.2, best 0.3 (epoch 2)" in text
    assert text.isascii()
    assert text.splitlines()[3].endswith("last 0.1")  # no rate is better than another


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_and_tables_hold_every_run(tmp_path: Path, suffix: str, capsys) -> None:
    runs = [write_epochs(tmp_path / name / "model") for name in ("one", "_two$")]
    write_log(runs[0] / "train-20260101_000000.log", range(6))
    out = tmp_path / f"out/curves{suffix}"
    tables = [tmp_path / "c.csv", tmp_path / "c.jsonl"]
    words = ["--output", str(out), "--csv", str(tables[0]), "--jsonl", str(tables[1])]
    command.main([*map(str, runs), *words])
    assert out.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    rows = list(csv.DictReader(tables[0].open(encoding="utf-8")))
    records = [json.loads(line) for line in tables[1].read_text().splitlines()]
    assert len(rows) == len(records) > 20
    losses = [row for row in records if row["name"] == "train/loss"]
    assert [(row["run"][-3:], row["epoch"], row["value"]) for row in losses] == [
        ("one", 1, 2.0),
        ("one", 2, 1.0),
        ("wo$", 1, 2.0),
        ("wo$", 2, 1.0),
    ]
    assert "mIoU" in capsys.readouterr().out


def test_formulas_and_numbers_that_are_none_stay_text(tmp_path: Path) -> None:
    run = Run("=cmd()", {"train/loss": [Point(None, 3, float("nan"))]})
    curves.write_csv([run], tmp_path / "c.csv")
    curves.write_jsonl([run], tmp_path / "c.jsonl")
    assert (tmp_path / "c.csv").read_text().splitlines()[1] == "'=cmd(),train/loss,,3,nan"
    assert json.loads((tmp_path / "c.jsonl").read_text())["value"] is None


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_epochs(tmp_path / "run/model")
    with pytest.raises(ConfigError, match=r"curves.pdf: curves are a .png or .svg file"):
        command.main([str(folder), "--output", "curves.pdf"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(StripsegError, match=r"pip install 'stripseg\[plots\]'"):
        command.main([str(folder), "--output", str(tmp_path / "c.png")])
