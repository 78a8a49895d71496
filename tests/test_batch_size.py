"""TRAIN.batch_size auto: the largest batch that fits, found once in the life of a run."""

from pathlib import Path

import pytest
import torch
import yaml
from processes import run_processes
from reference import fcn
from torch import nn
from yamls import complaint

from stripseg import batch_size
from stripseg.batch_size import (
    agreed_share,
    bytes_kept,
    fits_cpu,
    fits_gpu,
    is_too_much,
    largest_that_fits,
    settle_batch_size,
    trial_step,
)
from stripseg.config.errors import TrainingError
from stripseg.config.load import load_config
from stripseg.training_run import build_trainer
from stripseg.util import memory
from stripseg.util.checkpoint import read_checkpoint
from stripseg.util.distributed import process_group

CPU = torch.device("cpu")
AUTO = ["TRAIN.batch_size", "auto", "TRAIN.evaluate", "False"]


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("most", [2, 3, 16, 17, 100])
def test_the_search_finds_the_limit(least: int, most: int) -> None:
    for limit in range(110):
        tried = []

        def fits(images: int, limit=limit, tried=tried) -> bool:
            tried.append(images)
            return images <= limit

        found = largest_that_fits(fits, least=least, most=most)
        assert found == (min(limit, most) if limit >= least else 0)
        assert len(tried) == len(set(tried)) <= 15
        assert max(tried) <= max(2 * limit, least)  # never far beyond what there is


def settled(config: Path, *words: str, resumed=None, limit: int = 3):
    import logging

    config = load_config(config, [*AUTO, *words])
    return settle_batch_size(
        config,
        fcn(18),
        images=6,
        device=CPU,
        dtype=torch.float32,
        resumed=resumed,
        log=logging.getLogger("test"),
        fits=lambda images: images <= limit,
    )


@pytest.mark.parametrize(("limit", "batch"), [(3, 3), (50, 6), (2, 2)])
def test_the_config_gets_the_number(small_config: Path, limit: int, batch: int) -> None:
    assert settled(small_config, limit=limit).TRAIN.batch_size == batch


def test_nothing_fits(small_config: Path) -> None:
    with pytest.raises(TrainingError, match="2 images of 48x40 does not fit the memory; lower"):
        settled(small_config, limit=1)
    assert settled(small_config, "TRAIN.norm", "group", limit=1).TRAIN.batch_size == 1


def test_a_resumed_run_does_not_search_again(
    small_config: Path, tmp_path: Path, monkeypatch
) -> None:
    """Config, checkpoint and log have the number; run the same command to resume with it."""
    with monkeypatch.context() as patch:
        patch.setattr(batch_size, "fits_on", lambda *_: lambda images: images <= 3)
        build_trainer(load_config(small_config, AUTO), CPU).fit(until=1)
    folder = tmp_path / "run" / "model"
    assert yaml.safe_load((folder / "config.yaml").read_text())["TRAIN"]["batch_size"] == 3
    assert read_checkpoint(folder / "last.pth")["config"]["TRAIN"]["batch_size"] == 3
    assert "TRAIN.batch_size auto: 3, 3 a process" in next(folder.glob("*.log")).read_text()
    resumed = build_trainer(load_config(small_config, AUTO), CPU)  # alone it would take all 6
    assert (resumed.step, resumed.loader.batch_size, resumed.loader.steps_per_epoch) == (1, 3, 2)
    assert yaml.safe_load((folder / "config.yaml").read_text())["TRAIN"]["batch_size"] == 3
    resumed.fit()


def test_the_search_changes_no_number_of_the_run(small_config: Path, tmp_path: Path) -> None:
    weights = []
    for batch in ("auto", "6"):
        words = ["TRAIN.batch_size", batch, "TRAIN.save_path", str(tmp_path / batch)]
        trainer = build_trainer(load_config(small_config, [*words, "TRAIN.evaluate", "False"]), CPU)
        assert trainer.loader.batch_size == 6
        trainer.fit(until=1)
        weights.append(trainer.segmenter.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_the_cpu_is_estimated(small_config: Path) -> None:
    """Bytes an image grow with the crop, and the estimate follows the memory."""
    words = [*AUTO, "TRAIN.train_h", "64", "TRAIN.train_w", "64"]
    config = load_config(small_config, words)
    step = trial_step(config, fcn(18, 9, width=1), CPU, torch.float32)
    kept = bytes_kept(lambda: step(2)) / 2
    assert 1e6 < kept < 1e8
    fits = fits_cpu(step, least=2, available=int(kept * 20))  # half of it, twice each: five images
    assert largest_that_fits(fits, least=2, most=16) == 5


def test_free_memory_is_what_system_and_container_leave(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  8000 kB\nMemAvailable:   3000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory(CPU) == 3000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert memory.free_memory(CPU) == 3000 * 1024
    (tmp_path / "memory.max").write_text("2500\n")
    assert memory.free_memory(CPU) == 2000
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "absent")
    assert memory.free_memory(CPU) > 2**30


def search_of_process() -> tuple[int, bool]:
    limit = (7, 4)[process_group.rank()]

    def fits(images: int) -> bool:  # a collective in here would wait for ever
        return images <= limit and process_group.world_size() == 1

    return agreed_share(fits, least=1, most=16), process_group.world_size() == 2


@pytest.mark.slow
def test_processes_take_the_smallest_share() -> None:
    assert run_processes(2, search_of_process) == [(4, True), (4, True)]


@pytest.mark.parametrize(
    ("error", "too_much"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("output tensors with less than INT_MAX elements, but got [64, 150]"), True),
        (RuntimeError("Expected canUse32BitIndexMath(input) to be true, but got false"), True),
        (RuntimeError("input tensor must fit into 32-bit index math"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_gpu_says_that_it_is_full(monkeypatch, error: RuntimeError, too_much: bool) -> None:
    """The GPU's own figures are stood in for."""
    assert is_too_much(error) == too_much
    cuda = batch_size.torch.cuda
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(cuda, name, lambda *_: None)
    monkeypatch.setattr(batch_size.gc, "collect", lambda: 0)  # of all that the tests have loaded
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (900, 1000))
    monkeypatch.setattr(cuda, "memory_reserved", lambda device: 100)
    taken = []
    monkeypatch.setattr(cuda, "max_memory_reserved", lambda device: 100 * taken[-1])

    def step(images: int) -> None:
        taken.append(images)
        if images > 9:
            raise error

    fits = fits_gpu(step, torch.device("cuda", 0))
    assert fits(8)
    assert fits(9)  # 900 of 1000 bytes
    if too_much:
        assert not fits(10)
    else:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            fits(10)


@pytest.mark.gpu
def test_on_a_gpu(small_config: Path) -> None:
    config = load_config(small_config, AUTO)
    device = torch.device("cuda", 0)
    network: nn.Module = fcn(18, 9)
    fits = fits_gpu(trial_step(config, network, device, torch.float32), device)
    assert fits(2)
    assert not fits(100_000)


def test_auto_and_parts_contradict_each_other(write) -> None:
    words = ["TRAIN.batch_size", "auto", "TRAIN.accumulation_steps", "2"]
    assert "TRAIN.batch_size auto is one that fits; give the batch as a number" in complaint(
        write(), *words
    )
