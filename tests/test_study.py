"""A study's matrix runs to a table and pictures, run by run, and goes on after a stop."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from stripseg.config.errors import ConfigError, TrainingError
from stripseg.dataset.shapes10 import write_shapes10
from stripseg.tool import study, test, train
from stripseg.tool.study import Study
from stripseg.util.interruption import Stopped
from stripseg.util.study_report import Result, escaped, latex, markdown

ATTENTIONS = ["none", "strip_pool", "triplet", "eca", "gct"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with a small archive of the built-in pictures."""
    monkeypatch.chdir(tmp_path)
    write_shapes10(tmp_path / "data", train=24, val=13)
    return tmp_path


def write_study(folder: Path, **changes) -> str:
    content = {
        "name": "small",
        "configs": ["shapes10 resnet18"],
        "vary": {"TRAIN.attention": ATTENTIONS[:2]},
        "seeds": [0, 1],
        "options": {
            "DATA.data_root": str(folder / "data"),
            "TRAIN.epochs": 1,
            "TRAIN.batch_size": 12,
            "TRAIN.train_h": 16,
            "TRAIN.train_w": 16,
            "TRAIN.workers": 0,
            "TRAIN.evaluate": False,
            "TRAIN.tensorboard": False,
            "TRAIN.precision": "fp32",
            "TEST.workers": 0,
        },
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


@pytest.fixture
def in_process(monkeypatch) -> list[str]:
    """The commands in this process; which runs were made."""
    made: list[str] = []

    def run(command: str, words, place: Path) -> None:
        if command == "train":
            made.append(str(place.relative_to("exp/studies/small")))
        {"train": train, "test": test}[command].main(list(words))

    monkeypatch.setattr(study, "run", run)
    return made


@pytest.mark.slow
def test_the_full_matrix_of_the_study(folder: Path, in_process) -> None:
    """Five attentions, two depths, two seeds: means, deviations, costs, pictures."""
    path = write_study(folder, vary={"TRAIN.layers": [18, 34], "TRAIN.attention": ATTENTIONS})
    study.main([path])
    assert len(in_process) == len(set(in_process)) == 20
    out = folder / "exp/studies/small"
    table = (out / "table.md").read_text().splitlines()
    assert len(table) == 12
    assert table[0].startswith("| config | layers | attention | seeds | top1 | top5 | loss | param")
    assert "| 18 | none | 2 |" in table[2]
    assert "| 11,173,962 |" in table[2]
    assert "| 21,286,922 |" in next(line for line in table if "| 34 | triplet |" in line)
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == 20
    one = json.loads((out / in_process[0] / "result/metrics.json").read_text())
    assert float(rows[0]["top1"]) == one["top1"]
    for name in ("top1.png", "loss.png", "cost.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert r"strip\_pool" in (out / "table.tex").read_text()
    in_process.clear()
    study.main([path])
    assert in_process == []


def test_a_stopped_study_goes_on_with_the_missing_runs(
    folder: Path, in_process, monkeypatch, capsys
) -> None:
    path, run = write_study(folder), study.run

    def stopped(command: str, words, place: Path) -> None:
        if len(in_process) == 2:
            raise Stopped("stopped")
        run(command, words, place)

    monkeypatch.setattr(study, "run", stopped)
    with pytest.raises(Stopped):
        study.main([path])
    study.main([path, "--report"])
    table = capsys.readouterr().out.split("| --- |")[-1].splitlines()
    seeds = [line.split(" | ")[2] for line in table if line.startswith("| shapes10")]
    assert seeds == ["1", "0"]
    monkeypatch.setattr(study, "run", run)
    in_process.clear()
    study.main([path])
    assert len(in_process) == 3  # the second run had been trained, and not tested
    other = write_study(folder, options={"DATA.data_root": str(folder / "data"), "TRAIN.epochs": 9})
    study.main([other, "--report"])
    assert "2 rows have no run yet" in capsys.readouterr().out  # of these options


def test_a_run_that_fails_is_named_with_its_last_line(folder: Path) -> None:
    """In a process of its own, as the command does it."""
    path = write_study(folder, seeds=[0], options={"DATA.data_root": str(folder / "absent")})
    with pytest.raises(TrainingError, match=r"seed0: train ended with code 2: error: .*absent"):
        study.main([path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configs": ["shapes10"]}, "'shapes10' is not 'DATASET EXPERIMENT'"),
        ({"configs": ["shapes10 resnet99"]}, "resnet99"),
        ({"vary": {"TRAIN.attentoin": ["eca"]}}, "attentoin"),
        ({"vary": {"TRAIN.attention": ["ekka"]}}, "attention"),
        ({"seeds": []}, "seeds: "),
        ({"sedes": [1]}, "sedes: "),
    ],
)
def test_mistakes_are_found_before_the_first_run(folder: Path, changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(Path(write_study(folder, **changes)))


def test_tables_have_means_and_deviations() -> None:
    figures = [{"mIoU": 0.5, "loss": 1.0}, {"mIoU": 0.7, "loss": 2.0}]
    result = Result("camvid spnet18", {"TRAIN.attention": "eca"}, figures, 1_000_000, 2_000_000)
    assert markdown([result], ["mIoU", "loss"]).splitlines()[-1] == (
        "| camvid spnet18 | eca | 2 | 60.00 ± 14.14 | 1.5000 ± 0.7071 | 1,000,000 | 2.0 M |"
    )
    assert r"60.00 $\pm$ 14.14 & 1.5000" in latex([result], ["mIoU", "loss"])
    assert escaped("a_b & 5 %") == r"a\_b \& 5 \%"
