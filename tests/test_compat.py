"""Numbers of the reference implementations, reproduced from weights under the authors' names.

The fixtures lie in the folder STRIPSEG_COMPAT, or in `shared/compat` beside the checkout; the
smallest of them (loss, IoU, schedule, label maps, two attentions, the tester, one network) come
with the tests, some arrays cut.
`python -m tests.compat FOLDER` checks the same of any folder, with a table.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from compat import check
from compat.fixture import Fixture, UnknownFixtureError, read_fixture
from compat.networks import network_of
from torch import Tensor

from stripseg.model.families import FAMILIES, authors_keys, recognise
from stripseg.model.weights import load_weights

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "compat"
OURS = Path(__file__).with_name("compat") / "numbers"
FOLDER = Path(os.environ.get("STRIPSEG_COMPAT", BESIDE if BESIDE.is_dir() else OURS))
FIXTURES = sorted(path.stem for path in FOLDER.glob("*.json"))
KEYS = sorted(path.stem for path in FOLDER.glob("keys/*.json"))
pytestmark = pytest.mark.skipif(
    not FIXTURES, reason=f"no reference numbers in {FOLDER}; name their folder in STRIPSEG_COMPAT"
)


@pytest.mark.parametrize("name", FIXTURES)
def test_the_authors_numbers(name: str):
    results = check.check(read_fixture(FOLDER / f"{name}.json"))
    assert results
    wrong = [f"{what}: {error:.3g} x tolerance" for what, error in results if not error <= 1]
    assert wrong == []


def listed(name: str) -> tuple[dict, dict[str, Tensor]]:
    """(the JSON, tensors without content) of a list of an author's keys."""
    facts = json.loads((FOLDER / "keys" / f"{name}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return facts, {key: torch.empty(shape) for key, shape, _ in facts["state_dict"]}


@pytest.mark.parametrize("name", [name for name in KEYS if not name.startswith("attn")])
def test_an_authors_network_has_exactly_the_authors_tensors(name: str):
    facts, content = listed(name)
    height, width = (int(side) for side in (name.rsplit("_", 1)[1].split("x") * 2)[:2])
    fixture = Fixture(name, {**facts, "input": {"shape": [1, 3, height, width]}}, {}, None)
    with torch.device("meta"):
        network = network_of(fixture)
    report = load_weights(network, content, origin=name, exact=True)
    assert (report.new, report.unused) == ([], [])
    assert report.matched == len(content) == len(network.state_dict())
    assert sum(p.numel() for p in network.parameters()) == facts["num_parameters"]


@pytest.mark.parametrize("name", [name for name in KEYS if not name.startswith("attn")])
def test_keys_go_to_ours_and_back(name: str):
    content = listed(name)[1]
    family = recognise(content)
    ours = {family.to_stripseg(key): value for key, value in content.items()}
    assert len(ours) == len(content)
    assert list(authors_keys(ours, family)) == list(content)


@pytest.mark.skipif(not KEYS, reason="lists of keys are not among the numbers of the tests")
def test_there_is_a_list_of_keys_for_every_network_of_the_authors():
    names = {recognise(listed(name)[1]).name for name in KEYS if not name.startswith("attn")}
    assert names == {f.name for f in FAMILIES if not f.name.startswith("stripseg")}


def edited(name: str, **facts) -> Fixture:
    fixture = read_fixture(FOLDER / f"{name}.json")
    return Fixture(name, {**fixture.facts, **facts}, dict(fixture.arrays), fixture.recipe)


def test_a_kind_or_network_that_is_not_known_is_no_success():
    with pytest.raises(UnknownFixtureError, match="kind 'dream'"):
        check.check(edited("ce_loss", kind="dream"))
    name = "pyconvresnet50_64"
    with pytest.raises(UnknownFixtureError, match="network models.other.Net"):
        check.check(edited(name, constructor={"cls": "models.other.Net"}))
    constructor = {"cls": "models.pyconvresnet.pyconvresnet50", "new_option": 1}
    with pytest.raises(UnknownFixtureError, match="new_option"):
        check.check(edited(name, constructor=constructor))


@pytest.mark.parametrize(
    ("name", "array", "what"),
    [
        ("attn_spblock", "output", "output"),
        ("attn_eca_k3", "input_grad", "input gradient"),
        ("iou_K19", "union_a", "union of a"),
        ("poly_lr", "cases", "poly"),
        ("ce_loss", "loss_strided", "loss"),
        ("tester_ss_150x211", "prob", "probabilities"),
        ("pyconvresnet50_64", "logits", "logits"),
    ],
)
def test_another_number_is_found(name: str, array: str, what: str):
    fixture = edited(name)
    changed = fixture.arrays[array].copy()
    changed[(-1,) * changed.ndim] += 1 if changed.dtype.kind in "iu" else 1e-3
    fixture.arrays[array] = changed
    assert dict(check.check(fixture))[what] > 1
