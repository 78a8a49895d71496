"""Weights of any author into our networks: recognise by content, translate by table, load strictly.

A family is recognised by the keys of the file, never by its name. Its table turns the authors'
keys into ours. Whatever should match and does not is an error that names the tensors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..config.errors import CheckpointError

Rules = tuple[tuple[str, str], ...]

STRIP_POOLING_RULES: Rules = (
    (r"\.spm\.conv1\.", ".strip_pooling.rows.0."),
    (r"\.spm\.bn1\.", ".strip_pooling.rows.1."),
    (r"\.spm\.conv2\.", ".strip_pooling.columns.0."),
    (r"\.spm\.bn2\.", ".strip_pooling.columns.1."),
    (r"\.spm\.conv3\.", ".strip_pooling.fuse."),
)
MIXED_POOLING_RULES: Rules = (
    (r"\bconv1_1\.", "reduce_short."),
    (r"\bconv1_2\.", "reduce_long."),
    (r"\bconv2_0\.", "full."),
    (r"\bconv2_1\.", "pooled.0."),
    (r"\bconv2_2\.", "pooled.1."),
    (r"\bconv2_3\.", "columns."),
    (r"\bconv2_4\.", "rows."),
    (r"\bconv2_5\.", "fuse_short."),
    (r"\bconv2_6\.", "fuse_long."),
    (r"\bconv3\.", "expand."),
)


@dataclass(frozen=True)
class Family:
    """One author's way to name the tensors of a network.

    `marks` are keys that must all be present; `rules` are applied in order to every key, each at
    most once; keys that match `dropped` have no place in our networks and are reported as unused.
    `scope` is the part of our network that the file must fill.
    """

    name: str
    marks: tuple[str, ...]
    rules: Rules
    scope: str = ""
    dropped: str = r"^fc\."
    classic_stem: bool | None = None


FAMILIES = (
    Family("stripseg", ("backbone.stem.0.weight", "head.classifier.weight"), ()),
    Family("stripseg backbone", ("stem.0.weight",), ((r"^", "backbone."),), scope="backbone."),
    Family(
        "SPNet",
        ("pretrained.conv1.0.weight", "head.trans_layer.0.weight"),
        (
            *STRIP_POOLING_RULES,
            (r"^pretrained\.conv1\.", "backbone.stem."),
            (r"^pretrained\.bn1\.", "backbone.stem.7."),
            (r"^pretrained\.", "backbone."),
            (r"^head\.trans_layer\.", "head.reduce."),
            (r"^head\.strip_pool1\.", "head.mixed_pooling.0."),
            (r"^head\.strip_pool2\.", "head.mixed_pooling.1."),
            *((rf"(?<=mixed_pooling\.\d\.){old[2:]}", new) for old, new in MIXED_POOLING_RULES),
            (r"^head\.score_layer\.4\.", "head.classifier."),
            (r"^head\.score_layer\.", "head.conv."),
            (r"^auxlayer\.conv5\.4\.", "auxiliary_head.classifier."),
            (r"^auxlayer\.conv5\.", "auxiliary_head.conv."),
        ),
        dropped=r"^pretrained\.fc\.",
    ),
    Family(
        "PyTorch-Encoding backbone, deep stem",
        ("conv1.0.weight", "conv1.6.weight", "bn1.weight", "layer1.0.conv1.weight"),
        (
            *STRIP_POOLING_RULES,
            (r"^conv1\.", "backbone.stem."),
            (r"^bn1\.", "backbone.stem.7."),
            (r"^layer", "backbone.layer"),
        ),
        scope="backbone.",
        classic_stem=False,
    ),
    Family(
        "semseg backbone, deep stem",
        ("conv1.weight", "conv2.weight", "conv3.weight", "layer1.0.conv1.weight"),
        (
            (r"^conv1\.", "backbone.stem.0."),
            (r"^bn1\.", "backbone.stem.1."),
            (r"^conv2\.", "backbone.stem.3."),
            (r"^bn2\.", "backbone.stem.4."),
            (r"^conv3\.", "backbone.stem.6."),
            (r"^bn3\.", "backbone.stem.7."),
            (r"^layer", "backbone.layer"),
        ),
        scope="backbone.",
        classic_stem=False,
    ),
    Family(
        "torchvision backbone, classic stem",
        ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight"),
        (
            (r"^conv1\.", "backbone.stem.0."),
            (r"^bn1\.", "backbone.stem.1."),
            (r"^layer", "backbone.layer"),
        ),
        scope="backbone.",
        classic_stem=True,
    ),
)


@dataclass
class LoadReport:
    """What became of the tensors: `matched`, left `new` in the network, `unused` in the file."""

    family: str
    matched: int = 0
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.family}: {self.matched} tensors loaded"
        if self.new:
            text += f"; left new: {summary(self.new)}"
        if self.unused:
            text += f"; not used: {summary(self.unused)}"
        return text


def load_weights(network: nn.Module, content: Mapping, *, origin: str, exact: bool) -> LoadReport:
    """Fill `network` from the content of a weights file, or leave it as it was and say why.

    Args:
        network: a `Segmenter`.
        content: what the file held: a state_dict, bare or below `state_dict` or `model`, with or
            without the `module.` prefix of a (distributed) data-parallel wrapper.
        origin: the file's name, for messages.
        exact: True for testing: every tensor of the network must be there. False for
            initialising: a backbone file fills the backbone; a strip pooling module of which the
            file has nothing, and a classifier of another class count, stay new. Either way an
            auxiliary head, which testing does not use, may be absent on one side.
    Raises:
        CheckpointError: the file is of no known family or a tensor that should match does not.
    """
    family, state, unused = translate(content, origin=origin)
    if exact and family.scope:
        raise CheckpointError(
            f"{origin}: holds only a backbone ({family.name}); a whole trained model is needed"
        )
    target = network.state_dict()
    check_stem(family, target, origin)
    missing = [k for k in target if k not in state and not k.endswith("num_batches_tracked")]
    new = [key for key in missing if may_stay_new(key, family, state, exact=exact)]
    wrong_shape = [k for k, v in state.items() if k in target and target[k].shape != v.shape]
    if not exact:
        new += [key for key in wrong_shape if ".classifier." in key]
    extra = [key for key in state if key not in target]
    spare = [key for key in extra if is_spare(key, target)]
    problems = [[k for k in keys if k not in new] for keys in (missing, wrong_shape)]
    problems.append([key for key in extra if key not in spare])
    if any(problems):
        raise CheckpointError(differences(origin, family, target, state, *problems))
    usable = {k: v for k, v in state.items() if k in target and k not in new}
    network.load_state_dict({**target, **usable}, strict=True)
    return LoadReport(family.name, matched=len(usable), new=new, unused=unused + spare)


def translate(content: Mapping, *, origin: str) -> tuple[Family, dict[str, Tensor], list[str]]:
    """(family, tensors under our keys, keys of the file that have no place in our networks)."""
    state = unwrap(content, origin=origin)
    family = next((f for f in FAMILIES if all(mark in state for mark in f.marks)), None)
    if family is None:
        raise CheckpointError(
            f"{origin}: its tensors ({summary(list(state))}) belong to no network family known "
            f"here: {', '.join(f.name for f in FAMILIES)}"
        )
    dropped = [key for key in state if re.search(family.dropped, key)]
    kept = {rename(key, family.rules): value for key, value in state.items() if key not in dropped}
    return family, kept, dropped


def unwrap(content: Mapping, *, origin: str) -> dict[str, Tensor]:
    """The bare tensors of a file: out of `state_dict` or `model`, without `module.`."""
    for wrapper in ("state_dict", "model", "model_state"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{origin}: holds no tensors; expected a state_dict of weights")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def rename(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key, count=1)
    return key


def check_stem(family: Family, target: Mapping[str, Tensor], origin: str) -> None:
    """A stem of the other kind is the commonest mismatch: say so, and which switch mends it."""
    if family.classic_stem is None:
        return
    classic = "backbone.stem.6.weight" not in target
    if classic != family.classic_stem:
        has, wants = ("classic (7x7)", "deep") if family.classic_stem else ("deep", "classic (7x7)")
        raise CheckpointError(
            f"{origin}: {family.name} has the {has} stem and the network the {wants} one; "
            f"set TRAIN.stem to '{'classic' if family.classic_stem else 'deep'}'"
        )


def may_stay_new(key: str, family: Family, state: Mapping[str, Tensor], *, exact: bool) -> bool:
    """What a file need not bring: whole parts that it has nothing of, never a part of them."""
    if key.startswith("auxiliary_head."):
        return is_spare(key, state)
    if exact:
        return False
    if not key.startswith(family.scope):
        return True
    part, is_strip_pooling, _ = key.partition(".strip_pooling.")
    return bool(is_strip_pooling) and not any(k.startswith(part + ".strip_pooling.") for k in state)


def is_spare(key: str, other_side: Mapping[str, Tensor]) -> bool:
    """True for an auxiliary head's tensor where the other side has no auxiliary head."""
    prefix = "auxiliary_head."
    return key.startswith(prefix) and not any(k.startswith(prefix) for k in other_side)


def differences(
    origin: str,
    family: Family,
    target: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    wrong_shape: list[str],
    extra: list[str],
) -> str:
    """One readable line: which tensors differ and what that most likely means."""
    parts = []
    if wrong_shape:
        shown = [
            f"{key} is {tuple(state[key].shape)} in the file and {tuple(target[key].shape)} in "
            "the network"
            for key in sorted(wrong_shape, key=lambda key: ".classifier." not in key)[:3]
        ]
        more = f" and {len(wrong_shape) - 3} more" if len(wrong_shape) > 3 else ""
        parts.append("; ".join(shown) + more)
    if missing:
        parts.append(f"missing in the file: {summary(missing)}")
    if extra:
        parts.append(f"not in the network: {summary(extra)}")
    only_classifier = wrong_shape and all(".classifier." in key for key in wrong_shape)
    cause = (
        "another class count: check DATA.classes"
        if only_classifier and not missing and not extra
        else "another architecture: check TRAIN.arch, backbone, stem and spm_on"
    )
    return f"{origin} ({family.name}) does not fit the network, {cause}. " + ". ".join(parts)


def summary(keys: list[str], limit: int = 3) -> str:
    """The first few keys and how many more there are."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
