"""A test that was stopped goes on with the missing images, to the same figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stripseg.config.errors import DataError
from stripseg.config.load import load_config
from stripseg.dataset.results import ProgressJournal
from stripseg.dataset.segmentation import EvaluationSet
from stripseg.testing import what_decides
from stripseg.tool import test
from stripseg.util.inference.sliding_window import SlidingWindow


@pytest.fixture
def words(trained_config: Path) -> list[str]:
    return ["--config", str(trained_config)]


class Watched:
    """Counts the engine's images; its `stop_at`-th call is a Ctrl-C."""

    def __init__(self) -> None:
        self.calls, self.stop_at = 0, 0

    def expect(self, *, stop_at: int = 0) -> None:
        self.calls, self.stop_at = 0, stop_at


@pytest.fixture
def engine(monkeypatch) -> Watched:
    watched, predict = Watched(), SlidingWindow.predict_with_confidence

    def counted(self, images):
        watched.calls += 1
        if watched.calls == watched.stop_at:
            raise KeyboardInterrupt
        return predict(self, images)

    monkeypatch.setattr(SlidingWindow, "predict_with_confidence", counted)
    return watched


def stopped(words: list[str], engine: Watched, *, at: int) -> None:
    engine.expect(stop_at=at)
    with pytest.raises(KeyboardInterrupt):
        test.main(words)
    engine.expect()


def figures(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run/result/metrics.json").read_text())


def test_only_the_missing_images_are_predicted(words, engine, tmp_path: Path) -> None:
    test.main(words)
    whole = figures(tmp_path)
    assert engine.calls == 3
    (tmp_path / "run/result/metrics.json").unlink()
    stopped(words, engine, at=3)  # the first is written while the second is computed
    assert (tmp_path / "run/result/.journal").is_dir()
    test.main(words)
    assert engine.calls == 2
    assert figures(tmp_path) == whole
    assert not (tmp_path / "run/result/.journal").exists()
    engine.expect()
    test.main(words)  # a test that has ended is done again
    assert engine.calls == 3


def test_other_settings_start_again(words, engine) -> None:
    stopped(words, engine, at=3)
    test.main([*words, "TEST.scales", "[0.5]"])
    assert engine.calls == 3


@pytest.mark.parametrize(
    "changed",
    [["TEST.workers", "1"], ["TRAIN.epochs", "7"], ["Distributed.timeout_minutes", "3"]],
)
def test_what_does_not_decide_predictions_restarts_nothing(words, engine, changed) -> None:
    stopped(words, engine, at=3)
    test.main([*words, *changed])
    assert engine.calls == 2


def test_the_kind_of_device_decides_and_its_number_does_not(words) -> None:
    config, dataset = load_config(words[1]), EvaluationSet([], None)
    numbered = load_config(words[1], ["TEST.test_gpu", "[1]"])
    one = what_decides(config, torch.device("cuda", 0), dataset, 1, "digest")
    assert what_decides(numbered, torch.device("cuda", 1), dataset, 1, "digest") == one
    assert what_decides(config, torch.device("cpu"), dataset, 1, "digest") != one


def test_images_together_are_done_together(words, engine, tmp_path: Path) -> None:
    """What shares a forward pass is predicted again as a whole, so that rounding is the same."""
    together = [*words, "TEST.images_together", "2"]
    stopped(together, engine, at=2)
    test.main(together)
    assert engine.calls == 2
    engine.expect()
    test.main([*together, "TEST.save_predictions", "False"])
    assert engine.calls == 2


def test_figures_of_finished_images_are_those_of_their_record(
    words, engine, tmp_path: Path
) -> None:
    """What was predicted before the stop is neither predicted nor read again."""
    test.main(words)
    whole = figures(tmp_path)
    stopped(words, engine, at=3)
    (path,) = (tmp_path / "run/result/gray").glob("*1.png")
    Image.fromarray(np.full((5, 5), 3, np.uint8)).save(path)
    test.main(words)
    assert figures(tmp_path) == whole
    with pytest.raises(DataError, match="size differs from its image's"):
        test.main([*words, "TEST.has_prediction", "True"])


def test_a_damaged_entry_is_tested_again(words, engine, tmp_path: Path) -> None:
    test.main(words)
    whole = figures(tmp_path)
    stopped(words, engine, at=3)
    journal = tmp_path / "run/result/.journal/done-0.txt"
    journal.write_text(journal.read_text().replace('"counts": [[', '"counts": [["x", '))
    test.main(words)
    assert engine.calls == 3
    assert figures(tmp_path) == whole


def test_a_journal_knows_its_settings_and_whole_lines(tmp_path: Path) -> None:
    journal = ProgressJournal(tmp_path, {"scale": 1})
    journal.add([{"name": "a.jpg", "pixels": 3}, {"name": "ö b.jpg"}])
    journal.add([{"name": "c.jpg"}])
    path = tmp_path / ".journal/done-0.txt"
    path.write_text(path.read_text()[:-3])
    other = '{"name": "of another process.jpg"}\n["no entry"]\n{"name": 3}\n{"name": "cut"'
    (tmp_path / ".journal/done-5.txt").write_text(other)
    again = ProgressJournal(tmp_path, {"scale": 1})
    assert again.done.keys() == {"a.jpg", "ö b.jpg", "of another process.jpg"}
    assert again.done["a.jpg"]["pixels"] == 3
    assert again.finish().keys() == {"a.jpg", "ö b.jpg", "of another process.jpg"}
    other = ProgressJournal(tmp_path, {"scale": 2})
    assert other.done == other.finish() == {}
    other.remove()
    assert list(tmp_path.iterdir()) == []
