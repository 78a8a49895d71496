"""Checkpoints: whole or absent, data only, the newest readable one found again."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from stripseg.config.errors import CheckpointError
from stripseg.config.schema import TrainSection
from stripseg.util.checkpoint import (
    CheckpointFolder,
    read_checkpoint,
    write_checkpoint,
    write_weights,
)
from stripseg.util.files import link_or_copy, write_text


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "model", keep=2)


def save(folder: CheckpointFolder, epoch: int) -> None:
    folder.save_last({"step": 10 * epoch, "state_dict": {"w": torch.full((50,), float(epoch))}})
    folder.keep_epoch(epoch)


def damage(path: Path) -> None:
    """Cut the file in half, and only the file of this name."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = {"state_dict": {"w": torch.arange(3.0)}, "step": 7, "config": {"TRAIN": {"lr": 0.1}}}
    write_checkpoint(tmp_path / "deep" / "a.pth", content)
    read = read_checkpoint(tmp_path / "deep" / "a.pth")
    assert torch.equal(read["state_dict"]["w"], torch.arange(3.0))
    assert (read["step"], read["config"], read["format"]) == (7, content["config"], "stripseg")


def test_others_of_the_group_may_read_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pth", {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.pth").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_interrupted_saving_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pth"
    write_checkpoint(path, {"step": 1})
    before = path.read_bytes()

    def stopped(content, file) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, {"step": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil.pth: holds Python objects .* could run code"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "checkpoint does not exist; check the path"),
        (b"", "is damaged or no PyTorch checkpoint"),
        (b"not a checkpoint", "is damaged or no PyTorch checkpoint"),
        (pickle.dumps([1, 2], protocol=2), "is damaged or no PyTorch checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content, message: str) -> None:
    if content is not None:
        (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pth: ({message})"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_list_of_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds a list, not a dictionary"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_truncated_file_is_named(folder: CheckpointFolder) -> None:
    save(folder, 1)
    damage(folder.last)
    with pytest.raises(CheckpointError, match=r"last.pth: is damaged"):
        read_checkpoint(folder.last)


def test_the_last_epochs_are_kept(folder: CheckpointFolder) -> None:
    for epoch in (8, 9, 10, 11):
        save(folder, epoch)
    assert [path.name for path in folder.epochs()] == ["train_epoch_11.pth", "train_epoch_10.pth"]
    assert read_checkpoint(folder.epoch(10))["step"] == 100


def test_the_best_stays_what_it_was(folder: CheckpointFolder) -> None:
    save(folder, 1)
    folder.keep_best()
    for epoch in (2, 3, 4):
        save(folder, epoch)
    assert read_checkpoint(folder.best)["step"] == 10
    assert read_checkpoint(folder.last)["step"] == 40


def test_a_file_system_without_links_gets_copies(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    save(folder, 1)
    save(folder, 2)
    assert read_checkpoint(folder.epoch(1))["step"] == 10
    assert folder.epoch(2).stat().st_mtime_ns == folder.last.stat().st_mtime_ns  # as of a link


def test_the_newest_readable_one_is_found(folder: CheckpointFolder) -> None:
    save(folder, 1)
    save(folder, 2)
    assert folder.newest_good()[0] == folder.last
    damage(folder.last)
    damage(folder.epoch(2))
    path, content, warnings = folder.newest_good()
    assert (path, content["step"]) == (folder.epoch(1), 10)
    assert len(warnings) == 2
    assert "last.pth: is damaged" in warnings[0]


def test_no_checkpoint_and_no_readable_checkpoint_differ(folder: CheckpointFolder) -> None:
    assert folder.newest_good() is None
    save(folder, 1)
    damage(folder.last)
    damage(folder.epoch(1))
    with pytest.raises(CheckpointError, match=r"no readable checkpoint is left: .*TRAIN.resume"):
        folder.newest_good()


def test_safetensors_are_read_and_written(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(4.0), "b": torch.arange(6).view(2, 3).T}
    write_weights(tmp_path / "w.safetensors", {}, tensors)
    read = read_checkpoint(tmp_path / "w.safetensors")
    assert all(torch.equal(read[key], value) for key, value in tensors.items())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:60])
    with pytest.raises(CheckpointError, match=r"cut.safetensors: is damaged"):
        read_checkpoint(tmp_path / "cut.safetensors")


def test_what_costs_hours_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints outlive a power cut; other files do not wait for the disk."""
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("sync") or sync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("name") or replace(a, b))
    write_checkpoint(tmp_path / "a.pth", {"step": 1})
    write_weights(tmp_path / "b.pth", {"w": 1}, {})
    write_weights(tmp_path / "c.safetensors", {}, {"w": torch.zeros(2)})
    assert calls == ["sync", "name"] * 3
    calls.clear()
    write_text(tmp_path / "d.txt", "text")
    assert calls == ["name"]


def test_a_second_name_may_be_in_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    for _ in range(2):
        link_or_copy(tmp_path / "a", tmp_path / "new/folder/b")
    assert (tmp_path / "new/folder/b").read_text() == "a"
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["b"]


def test_as_many_are_kept_as_the_config_says_by_default(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path).keep == TrainSection.model_fields["keep_last"].default
