"""A study's matrix runs to a table and pictures, run by run, and goes on after a stop."""

import csv
import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from processes import PYTHON, Command

from stripseg.config.errors import ConfigError, TrainingError
from stripseg.config.load import find_config, load_config
from stripseg.dataset.generated.shapes10 import write_shapes10
from stripseg.model.build import build_network
from stripseg.tool import study
from stripseg.util.checkpoint import folder_lock
from stripseg.util.experiments.study import Row, read_study, write_study_report
from stripseg.util.files import write_text
from stripseg.util.signals import Stopped

ROOT = Path(__file__).resolve().parent.parent
ATTENTIONS = ["none", "strip_pool", "triplet", "eca", "gct"]
OPTIONS = {
    "TRAIN.epochs": 1,
    "TRAIN.batch_size": 12,
    "TRAIN.train_h": 16,
    "TRAIN.train_w": 16,
    "TRAIN.workers": 0,
    "TRAIN.evaluate": False,
    "TRAIN.tensorboard": False,
    "TRAIN.precision": "fp32",
    "TEST.workers": 0,
}


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
        "options": {"DATA.data_root": str(folder / "data"), **OPTIONS},
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config/studies").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_studies_that_are_shipped_are_possible(path: Path) -> None:
    file, rows = read_study(path)
    assert file.name == path.stem
    assert len({row.folder(0) for row in rows}) == len(rows)
    with torch.device("meta"):
        for row in rows:
            config = row.load(**{"TRAIN.width": 0.125})
            if not config.classifies:
                build_network(config)


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Runs without training, whose top-1 is their seed / 10; which of them were made."""
    made: list[str] = []

    def run(command: str, words, place: Path, request) -> None:
        config = load_config(find_config(*words[:2]), words[2:])
        assert config.TRAIN.save_path == str(place / "model")
        if command == "train":
            made.append(f"{config.TRAIN.attention} {config.TRAIN.manual_seed}")
            return
        figures = {"top1": config.TRAIN.manual_seed / 10, "top5": 1.0, "loss": 2.0}
        write_text(Path(config.TEST.save_folder) / "metrics.json", json.dumps(figures))

    cost = SimpleNamespace(parameters=11_173_962, multiply_adds=555_422_720)
    monkeypatch.setattr(study, "summarise_config", lambda config: [cost])
    monkeypatch.setattr(study, "run", run)
    return made


def test_the_full_matrix_of_the_study(folder: Path, made) -> None:
    """Five attentions, two seeds: means, deviations, costs, pictures."""
    path = write_study(folder, vary={"TRAIN.layers": [18], "TRAIN.attention": ATTENTIONS})
    study.main([path])
    assert len(made) == 10
    out = folder / "exp/studies/small"
    table = (out / "results.md").read_text().splitlines()[2:]
    assert table[0].startswith("| config | layers | attention | seeds | top1 | top5 | loss | param")
    assert "| 18 | none | 2 | 5.00 ± 7.07 | 100.00 ± 0.00 | 2.0000 ± 0.0000 |" in table[2]
    assert "| 11,173,962 |" in table[2]
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["top1"] for row in rows] == ["0.0", "0.1"] * 5
    assert json.loads((out / "results.json").read_text())[1]["top1"] == 0.1
    for name in ("top1.png", "loss.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert r"strip\_pool" in (out / "results.tex").read_text()
    made.clear()
    study.main([path])
    assert made == []


@pytest.mark.slow
def test_runs_are_trained_and_tested(
    folder: Path, forked_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real commands: the published study's table has their figures."""
    monkeypatch.setattr("sys.executable", forked_python)
    options = {**OPTIONS, "DATA.data_root": str(folder / "data"), "TRAIN.width": 0.125}
    study.main([write_study(folder, seeds=[0], vary={}, options=options)])
    (row,) = csv.DictReader((folder / "exp/studies/small/results.csv").open())
    (figures,) = folder.glob("exp/studies/small/shapes10_resnet18_seed0_*/result/metrics.json")
    assert float(row["top1"]) == json.loads(figures.read_text())["top1"]
    (last,) = folder.glob("exp/studies/small/shapes10_resnet18_seed0_*/model/last.pth")
    weights = torch.load(last, weights_only=True)["state_dict"]
    learned = [value.numel() for name, value in weights.items() if "running" not in name]
    buffers = sum(name.endswith("num_batches_tracked") for name in weights)
    assert int(row["parameters"]) == sum(learned) - buffers


def test_a_stopped_study_goes_on_with_the_missing_runs(
    folder: Path, made, monkeypatch, capsys
) -> None:
    path, run = write_study(folder), study.run

    def stopped(command: str, words, place: Path, request) -> None:
        if len(made) == 2:
            raise Stopped("stopped")
        run(command, words, place, request)

    monkeypatch.setattr(study, "run", stopped)
    with pytest.raises(Stopped):
        study.main([path])
    assert made == ["none 0", "strip_pool 0"]
    study.main([path, "--report"])
    table = capsys.readouterr().out.split("| --- |")[-1].splitlines()
    seeds = [line.split(" | ")[2] for line in table if line.startswith("| shapes10")]
    assert seeds == ["1", "0"]
    monkeypatch.setattr(study, "run", run)
    made.clear()
    study.main([path])
    assert len(made) == 3  # the second run had been trained, and not tested
    other = write_study(folder, options={"DATA.data_root": str(folder / "data"), "TRAIN.epochs": 9})
    study.main([other, "--report"])
    assert "2 rows without a run" in capsys.readouterr().out  # of these options


def test_a_run_that_fails_is_named_with_its_last_line(folder: Path) -> None:
    """In a process of its own, as the command does it."""
    path = write_study(folder, seeds=[0], options={"DATA.data_root": str(folder / "absent")})
    with pytest.raises(TrainingError, match=r"seed0_\w+: train ended with code 2: error: .*absent"):
        study.main([path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configs": ["shapes10"]}, "'shapes10' is not 'DATASET EXPERIMENT'"),
        ({"configs": ["shapes10 resnet99"]}, "resnet99"),
        ({"vary": {"TRAIN.attentoin": ["eca"]}}, "attentoin"),
        ({"vary": {"TRAIN.attention": ["ekka"]}}, "attention"),
        ({"seeds": []}, "seeds: "),
        ({"sedes": [1]}, "'sedes' is not a key here; did you mean seeds"),
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
        read_study(Path(write_study(folder, **changes)))


def result(config: str, values: dict, figures: dict) -> Row:
    return Row(config, values, {}, {"parameters": 10**6, "multiply-adds": 20}, figures)


def test_tables_have_means_and_deviations(tmp_path: Path) -> None:
    figures = {0: {"mIoU": 0.5, "loss": 1.0}, 4: {"mIoU": 0.7, "loss": 2.0}}
    write_study_report([result("camvid spnet18", {"TRAIN.attention": "eca"}, figures)], tmp_path)
    assert ("| camvid spnet18 | eca | 2 | 60.00 ± 14.14 | 1.5000 ± 0.7071 | 1,000,000 | 20 |") in (
        tmp_path / "results.md"
    ).read_text()
    assert r"60.00 $\pm$ 14.14 & 1.5000" in (tmp_path / "results.tex").read_text()
    with open(tmp_path / "results.csv") as file:
        assert [line.split(",")[2:4] for line in file] == [
            ["seed", "mIoU"],
            ["0", "0.5"],
            ["4", "0.7"],
        ]


def test_other_options_are_another_run(folder: Path, made) -> None:
    """Its weights are its own: the finished run of other options stays beside it."""
    path = write_study(folder, seeds=[0], vary={})
    study.main([path])
    options = yaml.safe_load(Path(path).read_text())["options"]
    slower = write_study(folder, seeds=[0], vary={}, options={**options, "TRAIN.base_lr": 1e-7})
    study.main([slower])
    assert len(made) == 2
    assert len(list(folder.glob("exp/studies/small/shapes10_resnet18_seed0_*"))) == 2
    study.main([write_study(folder, seeds=[0], vary={})])
    assert len(made) == 2  # the first options again
    study.main([path, "base_lr=1e-7", "--name", "small"])  # given with the command
    assert len(made) == 2
    given = ["TRAIN.width", "0.25", "--config", "shapes10 resnet18_eca", "--name", "narrow"]
    study.main([path, *given])
    assert made[2:] == ["eca 0"]
    assert len(list(folder.glob("exp/studies/narrow/shapes10_resnet18_eca_seed0_*"))) == 1
    with pytest.raises(ConfigError, match=r"TRAIN.epochs has no value; give options in pairs"):
        study.main([path, "TRAIN.epochs"])


@pytest.mark.slow
def test_a_study_asked_to_stop_lets_its_run_save(folder: Path, forked_python: str) -> None:
    """SIGTERM to the command alone; run the same command to resume from the checkpoint."""
    path = write_study(folder, seeds=[0], vary={})
    content = yaml.safe_load(Path(path).read_text())
    content["options"] |= {"TRAIN.epochs": 400, "TRAIN.print_freq": 1, "TRAIN.save_freq": 400}
    content["options"] |= {"TRAIN.width": 0.125}
    Path(path).write_text(yaml.safe_dump(content))
    (row,) = read_study(Path(path))[1]
    place = folder / "exp/studies/small" / row.folder(0)
    environment = {**os.environ, PYTHON: forked_python}
    process = Command("stripseg.tool.study", path, environment=environment)
    deadline = time.monotonic() + 60
    output = place / "train.txt"
    while not (output.exists() and "epoch 2/400" in output.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "run the same command to resume" in said
    last = torch.load(place / "model/last.pth", weights_only=True)
    assert last["step"] >= 3
    with folder_lock(place / "model"):  # nobody trains there any more
        pass


def test_studies_of_two_tasks_have_pictures_of_both(tmp_path: Path) -> None:
    results = [
        result("a b", {}, {0: {"top1": 0.5, "loss": 1.0}}),
        result("c d", {}, {0: {"mIoU": 0.4}}),
        result("e f", {}, {}),
    ]
    assert "1 row without a run" in write_study_report(results, tmp_path)
    pictures = {picture.name for picture in tmp_path.glob("*.png")}
    assert pictures == {"top1.png", "mIoU.png", "loss.png"}


def test_values_reach_the_config_as_they_are(folder: Path) -> None:
    vary = {"TRAIN.weight": [None, "null", "../../x y.pth"], "DATA.mean": [[1, 2.5, 3]]}
    rows = read_study(Path(write_study(folder, vary=vary)))[1]
    configs = [row.load() for row in rows]
    assert [config.TRAIN.weight for config in configs] == vary["TRAIN.weight"]
    assert list(configs[0].DATA.mean) == [1, 2.5, 3]
    folders = {row.folder(seed) for row in rows for seed in (0, 1)}
    assert len(folders) == 6
    assert all(re.fullmatch(r"[\w,-]+", name) for name in folders)
