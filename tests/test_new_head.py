"""docs/new_head.md as it stands: its file, line, YAML and test make a network that trains."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from stripseg.config.load import load_config
from stripseg.model import build
from stripseg.training_run import build_trainer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "new_head.md"


def block(heading: str) -> str:
    """The code below the page's heading that begins so."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    return re.search(r"```\w+\n(.*?)```", section, re.DOTALL)[1]


def imported(name: str, source: str, folder: Path, monkeypatch) -> ModuleType:
    """Source text as the module `name`."""
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(source, encoding="utf-8")
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def head_module(tmp_path: Path, monkeypatch) -> ModuleType:
    """The page's file, imported as a module of stripseg.model."""
    name = "stripseg.model.global_context"
    return imported(name, block("The file"), tmp_path, monkeypatch)


def test_the_page_trains_its_network(
    head_module, small_config: Path, tmp_path: Path, monkeypatch
) -> None:
    source = "\n".join(
        [
            "from stripseg.model.build import no_options",
            "from stripseg.model.global_context import GlobalContextHead",
            "LINE = {" + block("The line") + "}",
        ]
    )
    for arch, entry in imported("line", source, tmp_path, monkeypatch).LINE.items():
        monkeypatch.setitem(build.HEADS, arch, entry)
    content = yaml.safe_load(block("The YAML"))
    assert (PAGE.parent.parent / "config" / "shapes" / content["base"]).is_file()
    content["base"] = str(small_config)
    path = small_config.parent / "shapes_global_context18.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    trainer = build_trainer(load_config(path, ["TRAIN.evaluate", "False"]), torch.device("cpu"))
    assert isinstance(trainer.segmenter.head, head_module.GlobalContextHead)
    before = trainer.segmenter.head.classifier.weight.detach().clone()
    trainer.fit(until=2)
    assert trainer.step == 2
    assert not torch.equal(trainer.segmenter.head.classifier.weight, before)


def test_the_pages_test_passes(head_module, tmp_path: Path, monkeypatch) -> None:
    module = imported("page_test", block("The test"), tmp_path, monkeypatch)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
