"""Break each promise of docs/reliability.md in a copy of the program, and see its test fail.

python -m tests.faults.broken [NAME ...]; exits with 1 where a test passes on the broken program.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Break:
    """`old` in `file` becomes `new`; one of the `tests` must notice."""

    promise: str
    file: str
    old: str
    new: str
    tests: str


BREAKS = [
    Break(
        "resumed optimizer state",
        "util/training/trainer.py",
        'load_optimizer_state(self.optimizer, content["optimizer"])',
        'content["optimizer"]',
        "tests/test_resume.py::test_a_resumed_run_is_bit_identical",
    ),
    Break(
        "dropout that depends on the step alone",
        "util/training/trainer.py",
        "            torch.manual_seed(seed)\n",
        "",
        "tests/test_resume.py::test_a_resumed_run_is_bit_identical",
    ),
    Break(
        "order of the data",
        "dataset/loader.py",
        "np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(",
        "np.random.permutation(",
        "tests/test_resume.py::test_a_resumed_run_is_bit_identical tests/test_loader.py",
    ),
    Break(
        "any number of loader workers",
        "dataset/loader.py",
        "return [(epoch, int(index)) for index in share]",
        "return [(epoch + self.workers, int(index)) for index in share]",
        "tests/test_loader.py::test_workers_change_nothing",
    ),
    Break(
        "checkpoints whole or not at all",
        "util/files.py",
        "        os.replace(temporary, path)\n    except BaseException:",
        "        os.replace(temporary, path)\n    except BaseException:\n"
        "        os.replace(temporary, path)",
        "tests/test_reliability.py::test_a_full_disk_leaves_the_files_before_and_the_training",
    ),
    Break(
        "checksums",
        "util/checkpoint.py",
        "        check_sums(path)\n",
        "",
        "tests/test_reliability.py::test_an_altered_checkpoint_is_recognised",
    ),
    Break(
        "the checkpoint before a damaged one",
        "util/checkpoint.py",
        "        yield from self.epochs()",
        "        yield from []",
        "tests/test_training.py::test_damaged_newest_checkpoint_falls_back",
    ),
    Break(
        "a finished run's damaged checkpoint comes back",
        "stripseg/training_run.py",
        "        link_or_copy(path, checkpoints.last)",
        "        pass",
        "tests/test_faults.py::test_a_finished_run_whose_newest_checkpoint_is_damaged_gets_it_back",
    ),
    Break(
        "schema version",
        "util/checkpoint.py",
        "1 <= version <= FORMAT_VERSION",
        "True",
        "tests/test_training.py::test_checkpoint_of_a_newer_program_is_refused",
    ),
    Break(
        "training goes on while a checkpoint is written",
        "util/checkpoint.py",
        "copied = snapshot(content)",
        "copied = content",
        "tests/test_reliability.py::test_what_is_saved_is_what_was_when_it_was_saved",
    ),
    Break(
        "full disk",
        "util/checkpoint.py",
        "except (OSError, RuntimeError) as error:  #",
        "except KeyError as error:  #",
        "tests/test_reliability.py::test_a_full_disk_leaves_the_files_before_and_the_training",
    ),
    Break(
        "checkpoints every few steps",
        "util/training/trainer.py",
        "self.step % train.save_steps == 0",
        "self.step % train.save_steps == 1",
        "tests/test_reliability.py::test_checkpoints_every_few_steps",
    ),
    Break(
        "keep the last K and the best",
        "util/checkpoint.py",
        "for path in self.epochs()[self.keep :]:",
        "for path in []:",
        "tests/test_training.py::test_checkpoints_best_last_and_epochs tests/test_checkpoint.py",
    ),
    Break(
        "one run in a folder",
        "util/checkpoint.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/test_reliability.py::test_a_second_run_in_the_folder_is_refused",
    ),
    Break(
        "--fresh keeps the earlier run",
        "util/checkpoint.py",
        "    folder.rename(aside)",
        "    shutil.rmtree(folder)",
        "tests/test_reliability.py::test_fresh_starts_from_scratch_and_keeps_the_earlier_run",
    ),
    Break(
        "signals",
        "util/signals.py",
        '("SIGTERM", "SIGINT", "SIGUSR1")',
        '("SIGINT",)',
        "tests/test_reliability.py::test_a_signal_saves_and_ends_with_its_code",
    ),
    Break(
        "a second SIGINT",
        "util/signals.py",
        "self.name is not None and number == signal.SIGINT",
        "False",
        "tests/test_reliability.py::test_a_second_interrupt_ends_at_once",
    ),
    Break(
        "a dead process is named",
        "util/distributed/watchdog.py",
        "self._fallen_silent() if isinstance(error, RuntimeError) else []",
        "[]",
        "tests/test_processes_lost.py::test_processes_of_one_machine_are_out_of_reach_and_a_killed_one_is_named",
    ),
    Break(
        "a hung process ends the run",
        "util/distributed/watchdog.py",
        "patience = self.limit",
        "patience = 99 * self.limit",
        "tests/test_processes_lost.py::test_a_hung_process_ends_the_run_and_is_named",
    ),
    Break(
        "the launcher's end",
        "util/distributed/watchdog.py",
        "                    self.lost()",
        "                    pass",
        "tests/test_processes_lost.py::test_the_end_of_the_launcher_saves_and_stops",
    ),
    Break(
        "torchrun's restart",
        "stripseg/training_run.py",
        "    found = checkpoints.newest_good()\n",
        "    found = None\n",
        "tests/test_processes_lost.py::test_torchrun_restarts_a_run_that_lost_a_process",
    ),
    Break(
        "steps that are not finite",
        "util/training/step.py",
        "process_group.all_reduce_max(found.float())",
        "found.float() * 0",
        "tests/test_reliability.py::test_a_step_that_is_not_finite_changes_nothing",
    ),
    Break(
        "running statistics of a bad step",
        "util/training/step.py",
        "torch.where(skipped.bool(), before, torch.cat(buffers))",
        "torch.cat(buffers)",
        "tests/test_reliability.py::test_a_step_that_is_not_finite_changes_nothing",
    ),
    Break(
        "too many bad steps",
        "util/training/run_log.py",
        "self.skipped_in_a_row + 1 if skipped else 0",
        "0",
        "tests/test_reliability.py::test_too_many_in_a_row_stop_the_run_with_good_weights",
    ),
    Break(
        "steps wait for nothing on GPUs",
        "util/training/step.py",
        "        skipped = self._not_finite(losses[0], norm)\n",
        "        skipped = self._not_finite(losses[0], norm)\n        skipped.item()\n",
        "tests/test_fake_gpu.py::test_no_option_makes_a_step_wait",
    ),
    Break(
        "statistics of all processes on GPUs",
        "util/distributed/sync_batch_norm.py",
        "both = process_group.all_reduce_sum(torch.cat([total, product]))",
        "both = torch.cat([total, product])",
        "tests/test_fake_gpu.py::test_a_layer_of_two_processes_launches_no_more_than_it_did",
    ),
    Break(
        "batches without a label",
        "util/training/losses.py",
        "all_reduce_sum(total).clamp(min=1e-12)",
        "all_reduce_sum(total)",
        "tests/test_training.py::test_ignored_crop_is_harmless tests/test_losses.py",
    ),
    Break(
        "bad files are left out",
        "dataset/segmentation.py",
        "return self.blank(index, ",
        "raise DataError(",
        "tests/test_reliability.py::test_bad_files_stop_the_run_or_are_left_out",
    ),
    Break(
        "images and labels of one size",
        "dataset/segmentation.py",
        "label.shape != image.shape[:2]",
        "False",
        "tests/test_loader.py::test_an_image_and_a_label_of_different_size_are_named",
    ),
    Break(
        "no code from checkpoints",
        "util/checkpoint.py",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
        "tests/test_checkpoint.py::test_code_in_a_file_is_not_run tests/test_architecture.py",
    ),
    Break(
        "no code from YAML",
        "config/yaml_file.py",
        "class StrictLoader(yaml.SafeLoader):",
        "class StrictLoader(yaml.UnsafeLoader):",
        "tests/test_config_mistakes.py tests/test_architecture.py",
    ),
    Break(
        "lists stay below their root",
        "dataset/lists.py",
        "    if not outside:\n",
        "    if False:\n",
        "tests/test_lists.py::test_files_outside_of_the_root_are_refused_unless_allowed",
    ),
    Break(
        "absurd sizes",
        "stripseg/__init__.py",
        "str(2**28)",
        "str(2**50)",
        "tests/test_fuzz.py",
    ),
    Break(
        "curves are drawn once",
        "util/training/trackers.py",
        "purge_step=step + 1 if step else None",
        "purge_step=None",
        "tests/test_training.py::test_tensorboard_has_each_step_once_after_a_stop",
    ),
    Break(
        "no growth over many steps",
        "util/training/trainer.py",
        "            self.step += 1\n",
        '            self.step += 1\n            self.files = getattr(self, "files", []) + '
        '[open("/dev/null")]\n',
        "tests/test_faults.py::test_nothing_grows",
    ),
]

# ---- what a GPU would be asked, seen without one

BREAKS += [
    Break(
        "a GPU's step waits for nothing",
        "util/training/step.py",
        "        self.statistics.restore(skipped)\n",
        "        if skipped > 0:\n            self.statistics.restore(skipped)\n",
        "tests/test_fake_gpu.py::test_a_training_step_waits_for_nothing",
    ),
    Break(
        "a GPU's tensors stay there",
        "util/inference/score_map.py",
        "torch.arange(count, device=x.device)",
        "torch.arange(count)",
        "tests/test_fake_gpu.py::test_testing_and_validation_wait_for_nothing",
    ),
    Break(
        "no copy to a GPU is waited for",
        "util/images.py",
        "            tensor = tensor.pin_memory()\n",
        "            pass\n",
        "tests/test_fake_gpu.py::test_testing_and_validation_wait_for_nothing",
    ),
    Break(
        "what a step launches on a GPU",
        "util/training/step.py",
        "torch.split_with_sizes_copy(kept, [len(buffer) for buffer in buffers], out=buffers)",
        "[old.copy_(new) for old, new in "
        "zip(buffers, kept.split([len(buffer) for buffer in buffers]), strict=True)]",
        "tests/test_fake_gpu.py::test_a_step_of_spnet_50_launches_no_more_than_it_did",
    ),
    Break(
        "what a window launches on a GPU",
        "util/inference/score_map.py",
        "place.add_(scores)",
        "place.copy_(place + scores)",
        "tests/test_fake_gpu.py::test_a_window_of_spnet_50_launches_no_more_than_it_did",
    ),
]


def copy_of_the_program(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, target)


def notices(broken: Break, folder: Path) -> bool:
    """Does one of its tests fail on the broken program?

    Raises:
        ValueError: the program has changed, and there is nothing to break in this way.
    """
    path = folder / broken.file
    whole = path.read_text(encoding="utf-8")
    if broken.old not in whole:
        raise ValueError(f"{broken.promise}: {broken.file} has no {broken.old!r} any more")
    path.write_text(whole.replace(broken.old, broken.new, 1), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
        paths = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        ended = subprocess.run(
            [*command, *broken.tests.split()],
            cwd=folder, env=paths, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    finally:
        path.write_text(whole, encoding="utf-8")
    if ended.returncode not in (0, 1):
        raise ValueError(f"{broken.promise}: pytest could not run:\n{ended.stdout[-2000:]}")
    return ended.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.broken", description=__doc__)
    parser.add_argument("names", nargs="*", help="promises, by a part of their name; empty is all")
    names = parser.parse_args().names
    chosen = [b for b in BREAKS if not names or any(name in b.promise for name in names)]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_of_the_program(Path(folder))
        for broken in chosen:
            noticed = notices(broken, Path(folder))
            unnoticed += not noticed
            print(f"{'noticed' if noticed else 'NOT NOTICED'}: {broken.promise}", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} broken promises were noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
