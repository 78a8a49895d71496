"""The short versions of `python -m tests.faults` and `python -m tests.faults.long_haul`."""

import ast
from pathlib import Path

import pytest
import yaml
from faults import broken, long_haul, mutants
from faults.harness import bombard

from stripseg.util.checkpoint import CheckpointFolder

SOURCE = '''"""Text is for people."""
LIMIT = 1
def f(x: int, y):
    if x < y and not y:
        raise ValueError(f'{x - 1}')
    x += 2
    note(x)
    return -x * y if x else True
'''


@pytest.mark.slow
def test_a_run_under_fire_ends_as_an_untouched_one(small_config: Path, tmp_path: Path) -> None:
    words = {"TRAIN": {"tensorboard": False, "evaluate_freq": 2}}
    content = yaml.safe_load(small_config.read_text())
    content["TRAIN"] |= words["TRAIN"]
    small_config.write_text(yaml.safe_dump(content))
    report = bombard(small_config, tmp_path / "fire", kills=2, seed=1)
    assert report.kills + report.stops >= 2
    assert report.differences == []


def test_a_finished_run_whose_newest_checkpoint_is_damaged_gets_it_back(
    small_config: Path, tmp_path: Path
) -> None:
    from stripseg.tool import train

    words = ["--config", str(small_config), "TRAIN.epochs", "1"]
    train.main(words)
    files = CheckpointFolder(tmp_path / "run/model")
    whole = files.last.read_bytes()
    files.last.unlink()  # it is a second name of the epoch's
    files.last.write_bytes(whole[:-100])
    train.main(words)
    assert files.last.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux's /proc")
def test_nothing_grows(tmp_path: Path) -> None:
    looks = long_haul.haul(tmp_path, steps=100, looks=10)
    assert len(looks) == 10
    assert long_haul.growth(looks) == []


def test_what_grows_is_found() -> None:
    looks = [long_haul.Usage(step, 100 + 6 * step, 9, 3, 1) for step in range(10)]
    assert long_haul.growth(looks) == ["grew from 115 to 151 MiB"]
    looks = [long_haul.Usage(step, 100, 9 + step // 9, 3 + step, 1) for step in range(10)]
    assert long_haul.growth(looks) == ["grew from 9 to 10 open files", "grew from 6 to 12 threads"]


def test_the_program_still_has_what_is_broken_on_purpose() -> None:
    for promise in broken.BREAKS:
        text = (broken.ROOT / promise.file).read_text(encoding="utf-8")
        assert promise.old in text, promise.promise
        for name in promise.tests.split():
            file, _, function = name.partition("::")
            assert f"def {function}" in (broken.ROOT / file).read_text(encoding="utf-8"), name


def test_mutants_are_small_changes_that_python_understands() -> None:
    """Of each file that `python -m tests.faults.mutants` alters."""
    for file in mutants.CORE:
        text = (broken.ROOT / file).read_bytes()
        found = mutants.mutants_of(broken.ROOT, file)
        assert len(found) > 10
        for mutant in found[::8]:
            changed = text[: mutant.start] + mutant.new.encode() + text[mutant.end :]
            assert changed != text
            ast.parse(changed)


def test_each_kind_of_mutant_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    found = {(m.old, m.new, m.lines) for m in mutants.mutants_of(tmp_path, "a.py")}
    assert found == {
        ("1", "2", ()),
        ("<", "<=", (4,)),
        ("and", "or", (4,)),
        ("not", "", (4,)),
        ("raise ValueError(f'{x - 1}')", "pass", (5,)),
        ("x += 2", "pass", (6,)),
        ("2", "3", (6,)),
        ("note(x)", "pass", (7,)),
        ("-", "", (8,)),
        ("*", "/", (8,)),
        ("x", "(not (x))", (8,)),
        ("True", "False", (8,)),
    }


@pytest.mark.long
def test_a_broken_promise_is_noticed(tmp_path: Path) -> None:
    """One of `python -m tests.faults.broken`."""
    broken.copy_of_the_program(tmp_path)
    promise = next(b for b in broken.BREAKS if b.promise == "checksums")
    assert broken.notices(promise, tmp_path)
    promise = broken.Break("nothing", promise.file, promise.old, promise.old, promise.tests)
    assert not broken.notices(promise, tmp_path)
