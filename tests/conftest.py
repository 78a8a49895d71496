"""What several test files need: a small generated dataset and a config for it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml

import stripseg  # noqa: F401 - before OpenCV, as in the commands: it sets the largest size of images
from stripseg.util.distributed.process_group import cpus

ROOT = Path(__file__).resolve().parent.parent
GPU_ONLY = "gpu"  # the tests that `make test-gpu` runs: pytest -m gpu
LONG = "long"  # those of `make test-long`

# the commands under test run as processes of their own, from any folder
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# what fails in CI fails at home; STRIPSEG_FUZZ above 1 tries new examples each time
FUZZ = int(os.environ.get("STRIPSEG_FUZZ", 1))
hypothesis.settings.register_profile("stripseg", derandomize=FUZZ == 1, deadline=None)
hypothesis.settings.load_profile("stripseg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny and the test processes many


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that are for them: figures to compare are the CPU's."""
    if config.getoption("markexpr") != GPU_ONLY:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        pytest.exit("the tests marked gpu need a GPU, and PyTorch finds none here", returncode=2)


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than there are processors, since some tests only wait for others."""
    return cpus() + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for name, reason in ((GPU_ONLY, "for GPUs: make test-gpu"), (LONG, "long: make test-long")):
        if config.getoption("markexpr") != name:
            for item in items:
                if item.get_closest_marker(name):
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """What a test draws without a generator of its own is the same each time, in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_shapes(tmp_path_factory) -> Path:
    """Six training and three validation scenes of 72 x 88 pixels."""
    from stripseg.dataset.generated.shapes import write_shapes

    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=6, val=3, height=72, width=88)
    return root


def write_small_config(small_shapes: Path, folder: Path) -> Path:
    content = {
        "DATA": {
            "dataset": "shapes",
            "data_root": str(small_shapes),
            "train_list": "train.txt",
            "val_list": "val.txt",
            "classes": 9,
            "outside_root": True,  # tests name files that they make elsewhere
        },
        "TRAIN": {
            "arch": "spnet",
            "layers": 18,
            "width": 0.125,  # where the network is not the subject: a third of the time
            "train_h": 48,
            "train_w": 40,
            "batch_size": 2,
            "epochs": 2,
            "workers": 0,
            "print_freq": 1,
            "precision": "fp32",
            "save_path": str(folder / "run" / "model"),
        },
        "TEST": {
            "test_list": "val.txt",
            "base_size": 0,
            "workers": 0,
            "save_folder": str(folder / "run" / "result"),
        },
    }
    path = folder / "shapes_small.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def small_config(small_shapes: Path, tmp_path: Path) -> Path:
    """A YAML that trains SPNet-18 on `small_shapes` for two epochs of three steps."""
    return write_small_config(small_shapes, tmp_path)


@pytest.fixture(scope="session")
def small_run(small_shapes: Path, tmp_path_factory) -> Path:
    """What an epoch of it without validation left, for tests that copy it."""
    from stripseg.tool import train

    folder = tmp_path_factory.mktemp("small_run")
    config = write_small_config(small_shapes, folder)
    train.main(["--config", str(config), "TRAIN.epochs", "1", "TRAIN.evaluate", "False"])
    return folder / "run/model"


@pytest.fixture(scope="session")
def small_archive(tmp_path_factory) -> Path:
    from stripseg.dataset.generated.shapes10 import write_shapes10

    root = tmp_path_factory.mktemp("shapes10")
    write_shapes10(root, train=24, val=13)
    return root


@pytest.fixture
def classifier_config(small_archive: Path, tmp_path: Path) -> Path:
    """Trains ResNet-18 with ECA for two epochs of three steps."""
    content = {
        "base": str(ROOT / "config/shapes10/shapes10_resnet18_eca.yaml"),
        "DATA": {"data_root": str(small_archive)},
        "TRAIN": {
            "batch_size": 8,
            "batch_size_val": 5,
            "optimizer": "sgd",
            "base_lr": 0.02,
            "schedule": "step",
            "epochs": 2,
            "milestones": [1],
            "workers": 0,
            "print_freq": 1,
            "precision": "fp32",
            "width": 0.125,
            "train_h": 16,
            "train_w": 16,
            "save_path": str(tmp_path / "run" / "model"),
        },
        "TEST": {"workers": 0, "batch_size": 5, "save_folder": str(tmp_path / "run" / "result")},
    }
    path = tmp_path / "shapes10_small.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def trained_config(small_config: Path, small_run: Path, tmp_path: Path) -> Path:
    """`small_config` with a copy of the trained network where it is looked for."""
    shutil.copytree(small_run, tmp_path / "run/model")
    return small_config


@pytest.fixture(scope="module")
def one_block_per_stage() -> Iterator[None]:
    """ResNet-18 and its relatives at half their depth."""
    from stripseg.model.backbone.resnet import DEPTHS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEPTHS, 18, (1, 1, 1, 1))
        yield


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory) -> str:
    """What is started in the place of Python is forked: see tests/processes.py."""
    from processes import write_python

    path = tmp_path_factory.mktemp("bin") / "python"
    write_python(path)
    return str(path)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a file below the current folder, which is an empty one."""
    monkeypatch.chdir(tmp_path)

    def write(
        text: str = "DATA:\n  data_root: data\n  classes: 3\n",
        name: str = "config/mine/mine_run.yaml",
    ) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def sweep_file(small_config: Path, tmp_path: Path, monkeypatch):
    """Writes a sweep over the small shapes network and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(**changes) -> Path:
        content = {
            "config": str(small_config),
            "method": "grid",
            "metric": {"name": "mIoU", "goal": "maximize"},
            "parameters": {
                "learning_rate": {"values": [0.001, 0.01]},
                "epochs": {"value": 1},
                "TRAIN.tensorboard": {"value": False},
            },
            **changes,
        }
        path = tmp_path / "small.yaml"
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        return path

    return write
