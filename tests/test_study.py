"""A study's matrix runs to a table and pictures, run by run, and goes on after a stop."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from stripseg.config.errors import ConfigError, TrainingError
from stripseg.dataset.generated.shapes10 import write_shapes10
from stripseg.tool import study, test, train
from stripseg.tool.study import Study
from stripseg.util.checkpoint import folder_lock
from stripseg.util.experiments.report import StudyRow, escaped, write_study_report
from stripseg.util.signals import Stopped

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

    def run(command: str, words, place: Path, request) -> None:
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
    for name in ("top1.png", "loss.png", "cost_top1.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert r"strip\_pool" in (out / "table.tex").read_text()
    in_process.clear()
    study.main([path])
    assert in_process == []


def test_a_stopped_study_goes_on_with_the_missing_runs(
    folder: Path, in_process, monkeypatch, capsys
) -> None:
    path, run = write_study(folder), study.run

    def stopped(command: str, words, place: Path, request) -> None:
        if len(in_process) == 2:
            raise Stopped("stopped")
        run(command, words, place, request)

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
        ({"seeds": [1, 1]}, "seeds: has a value twice"),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"vary": {"TRAIN.attention": []}}, "vary.TRAIN.attention: "),
        ({"vary": {"TRAIN.attention": ["eca", "eca"]}}, "has a value twice"),
        ({"vary": {"TRAIN.manual_seed": [1, 2]}}, "TRAIN.manual_seed is each run's own"),
        ({"options": {"TEST.model_path": "x.pth"}}, "TEST.model_path is each run's own"),
        (
            {"vary": {"attention": ["eca"], "TRAIN.attention": ["se"]}},
            "is already given in vary.attention",
        ),
        ({"name": ".."}, "name: "),
    ],
)
def test_mistakes_are_found_before_the_first_run(folder: Path, changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(Path(write_study(folder, **changes)))


def test_tables_have_means_and_deviations(tmp_path: Path) -> None:
    figures = {0: {"mIoU": 0.5, "loss": 1.0}, 4: {"mIoU": 0.7, "loss": 2.0}}
    row = StudyRow("camvid spnet18", {"TRAIN.attention": "eca"}, figures, 1_000_000, 2_000_000)
    write_study_report([row], tmp_path)
    assert (tmp_path / "table.md").read_text().splitlines()[-1] == (
        "| camvid spnet18 | eca | 2 | 60.00 ± 14.14 | 1.5000 ± 0.7071 | 1,000,000 | 2.0 M |"
    )
    assert r"60.00 $\pm$ 14.14 & 1.5000" in (tmp_path / "table.tex").read_text()
    assert escaped("a_b & 5 %") == r"a\_b \& 5 \%"
    with open(tmp_path / "results.csv") as file:
        assert [line.split(",")[2:4] for line in file] == [
            ["seed", "mIoU"],
            ["0", "0.5"],
            ["4", "0.7"],
        ]


def test_other_options_are_another_run(folder: Path, in_process, capsys) -> None:
    """Its weights are its own: the finished run of other options is kept beside it."""
    path = write_study(folder, seeds=[0], vary={})
    study.main([path])
    place = folder / "exp/studies/small/shapes10_resnet18/as_it_is"
    before = json.loads((place / "seed0/result/metrics.json").read_text())
    options = yaml.safe_load(Path(path).read_text())["options"]
    slower = write_study(folder, seeds=[0], vary={}, options={**options, "TRAIN.base_lr": 1e-7})
    capsys.readouterr()
    study.main([slower])
    assert "with other options, is kept in" in capsys.readouterr().out
    assert len(in_process) == 2
    after = json.loads((place / "seed0/result/metrics.json").read_text())
    assert after["loss"] != before["loss"]
    kept = next(place.glob("seed0-until-*"))
    assert json.loads((kept / "result/metrics.json").read_text()) == before


@pytest.mark.slow
def test_a_study_asked_to_stop_lets_its_run_save(folder: Path) -> None:
    """SIGTERM to the command alone; run the same command to resume from the checkpoint."""
    path = write_study(folder, seeds=[0], vary={})
    content = yaml.safe_load(Path(path).read_text())
    content["options"] |= {"TRAIN.epochs": 400, "TRAIN.print_freq": 1, "TRAIN.save_freq": 400}
    Path(path).write_text(yaml.safe_dump(content))
    place = folder / "exp/studies/small/shapes10_resnet18/as_it_is/seed0"
    command = [sys.executable, "-m", "stripseg.tool.study", path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    output = place / "train.txt"
    while not (output.exists() and "epoch 2/400" in output.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "run the same command to resume" in said
    last = torch.load(place / "model/last.pth", weights_only=True)
    assert last["step"] >= 3
    with folder_lock(place / "model"):  # nobody trains there any more
        pass


def test_studies_of_two_tasks_have_pictures_of_both(tmp_path: Path) -> None:
    results = [
        StudyRow("a b", {}, {0: {"top1": 0.5, "loss": 1.0}}, 10, 20),
        StudyRow("c d", {}, {0: {"mIoU": 0.4}}, 10, 20),
        StudyRow("e f", {}, {}, 10, 20),
    ]
    assert "1 rows have no run yet" in write_study_report(results, tmp_path)
    assert {"cost_top1.png", "cost_mIoU.png", "top1.png", "mIoU.png", "loss.png"} == {
        picture.name for picture in tmp_path.glob("*.png")
    }


def test_values_reach_the_config_as_they_are(folder: Path) -> None:
    vary = {"TRAIN.weight": [None, "null", "../../x y.pth"], "DATA.mean": [[1, 2.5, 3]]}
    read = Study(Path(write_study(folder, vary=vary)))
    configs = [read.load(cell, Path("study.yaml")) for cell in read.cells]
    assert [config.TRAIN.weight for config in configs] == vary["TRAIN.weight"]
    assert list(configs[0].DATA.mean) == [1, 2.5, 3]
    folders = [cell.folder for cell in read.cells]
    assert len(set(folders)) == 3
    assert all("/" not in name.partition("/")[2] and ".." not in name[:40] for name in folders[:2])
    assert all(Path("a", name).resolve().is_relative_to(Path("a").resolve()) for name in folders)
