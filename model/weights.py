"""Load weights of any author: recognised by content, translated, loaded strictly.

The tables of names are in families.py. A tensor that should match and does not is an error that
names it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..config.errors import CheckpointError
from .families import (
    EFFICIENTNET_PYTORCH,
    FAMILIES,
    TIMM,
    Family,
    recognise,
    timm_efficientnet,
)

# what programs put around a state_dict, and in front of all its keys
AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict")  # moving averages
WRAPPERS = ("state_dict", "model", "model_state", "net", "network", "weights", *AVERAGES)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
BACKBONE, HEAD, AUXILIARY, CLASSIFIER = "backbone.", "head.", "auxiliary_head.", "classifier."
DECODER, HEAD_CLASSIFIER = "decoder.", "head.classifier."
STAGES = "strip_pooling."  # TRAIN.spm_stages


@dataclass
class LoadReport:
    """Which tensors were loaded, adapted, left new or not used.

    `matched` filled the network, `adapted` ones among them to another number of image channels;
    `new` ones of the network were left as they were, `unused` ones of the file have no place in it.
    `average` is the key of the file below which they lay, where it holds a moving average.
    """

    family: str
    matched: int = 0
    adapted: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    average: str | None = None

    def __str__(self) -> str:
        text = f"{self.family}: {self.matched} tensors loaded"
        if self.average:
            text += f", the moving average of the weights ('{self.average}')"
        if self.adapted:
            text += f"; adapted from RGB to DATA.in_channels: {first_few(self.adapted)}"
        if self.new:
            text += f"; left new: {first_few(self.new)}"
        if self.unused:
            text += f"; not used: {first_few(self.unused)}"
        return text


def load_weights(
    network: nn.Module,
    content: Mapping,
    *,
    origin: str,
    exact: bool,
    backbone_only: bool = False,
) -> LoadReport:
    """Fill `network` from the content of a weights file, or leave it as it was and say why.

    Args:
        network: a `Segmenter`.
        content: what the file held: a state_dict, bare or below `state_dict` or `model`, with or
            without the `module.` prefix of a (distributed) data-parallel wrapper.
        origin: the file's name, for messages.
        exact: True for testing: every tensor of the network must be there. False for
            initialising: a backbone file fills the backbone; a strip pooling or attention module
            or a decoder of which the file has nothing, and a classifier of another class count,
            stay new; the first convolution adapts to the image's channels (`adapt_channels`).
            Either way an auxiliary head, which testing does not use, may be absent on one side.
        backbone_only: refuse a whole trained network, which has a head, and its own mean and std.
    Raises:
        CheckpointError: the file is of no known family or a tensor that should match does not.
    """
    target = network.state_dict()
    family, state, unused = translate(
        content, origin=origin, for_timm=has_timm_backbone(target), target=target
    )
    if exact and not family.whole and HEAD in prefixes_of(target):
        raise CheckpointError(
            f"{origin}: holds only a backbone ({family.name}); a whole trained model is needed"
        )
    if backbone_only and family.whole:
        raise CheckpointError(
            f"{origin}: is a whole trained network; to start from it, name it in TRAIN.weight"
        )
    check_stem(family, state, target, origin)
    missing = [k for k in target if k not in state and not k.endswith("num_batches_tracked")]
    new = [key for key in missing if may_stay_new(key, family, state, exact=exact)]
    adapted = [] if exact else adapt_channels(state, target)
    wrong_shape = [k for k, v in state.items() if k in target and target[k].shape != v.shape]
    if not exact:
        new += [key for key in wrong_shape if is_classifier(key)]
    extra = [key for key in state if key not in target]
    spare = [key for key in extra if is_spare(key, target) or is_behind_timm(key, target)]
    if not exact and lacks_decoder(state, target):  # the decoder's takes its place
        spare += [key for key in extra if key.startswith(HEAD_CLASSIFIER)]
    problems = [[k for k in keys if k not in new] for keys in (missing, wrong_shape)]
    problems.append([key for key in extra if key not in spare])
    if any(problems):
        raise CheckpointError(differences(origin, family, target, state, *problems))
    usable = {k: v for k, v in state.items() if k in target and k not in new}
    network.load_state_dict({**target, **usable}, strict=True)
    unused += [family.to_author(key) for key in spare]
    return LoadReport(
        family.name,
        matched=len(usable),
        adapted=adapted,
        new=new,
        unused=unused,
        average=next((key for key in wrappers_of(content) if key in AVERAGES), None),
    )


def adapt_channels(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Fit a convolution over RGB in `state` to another number of image channels; its keys.

    One channel gets the sum over R, G and B: a grey image gives what it gave as three equal
    channels. More get the weights of R, G, B, R, G, ... in turn, times 3 / channels, so that the
    response keeps its size.
    """
    adapted = []
    for key, weight in state.items():
        wanted = target[key].shape if key in target else weight.shape
        if wanted == weight.shape or weight.dim() != 4 or weight.shape[1] != 3:
            continue
        channels = wanted[1]
        if wanted != (weight.shape[0], channels, *weight.shape[2:]):
            continue
        if channels == 1:
            state[key] = weight.sum(dim=1, keepdim=True)
        else:
            turns = [channel % 3 for channel in range(channels)]
            state[key] = weight[:, turns] * (3 / channels)
        adapted.append(key)
    return adapted


def translate(
    content: Mapping, *, origin: str, for_timm: bool = False, target: Iterable[str] = ()
) -> tuple[Family, dict[str, Tensor], list[str]]:
    """(family, tensors under our keys, keys of the file that have no place in our networks).

    `for_timm` takes what is not stripseg's own for the names of the timm network it is for;
    `target` are the keys of the network to load, as in `recognise`.
    """
    state = unwrap(content, origin=origin)
    if for_timm and EFFICIENTNET_PYTORCH.fits(state):
        state = timm_efficientnet(state)
    family = recognise(state, target)
    if for_timm and (family is None or not family.name.startswith("stripseg")):
        family = TIMM
    if family is None:
        raise CheckpointError(
            f"{origin}: unrecognized checkpoint format (its tensors are {first_few(list(state))}); "
            f"known formats: {', '.join(f.name for f in FAMILIES)}"
        )
    unused = [key for key in state if family.unused and re.fullmatch(family.unused, key)]
    renamed = {family.to_stripseg(k): value for k, value in state.items() if k not in unused}
    return family, renamed, unused


def wrappers_of(content: Mapping) -> list[str]:
    """The keys of `WRAPPERS` that lead to the tensors of a file, from the outside in."""
    keys: list[str] = []
    for _ in WRAPPERS:  # so many levels at most: a file may hold a mapping within itself
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content = content[key]
        keys.append(key)
    return keys


def unwrap(content: Mapping, *, origin: str) -> dict[str, Tensor]:
    """The bare tensors of a file: out of `WRAPPERS`, without `PREFIXES` that all keys share."""
    for wrapper in wrappers_of(content):
        content = content[wrapper]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        inside = [key for key, value in content.items() if isinstance(value, Mapping)]
        found = f" (below {', '.join(map(str, inside))}?)" if inside else ""
        raise CheckpointError(
            f"{origin}: holds no tensors at its top{found}; expected a state_dict of weights, also "
            f"below one of {', '.join(WRAPPERS)}"
        )
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def check_stem(
    family: Family, state: Mapping[str, Tensor], target: Mapping[str, Tensor], origin: str
) -> None:
    """Report the most common mismatch, a deep or classic stem, and the option that fixes it."""
    first, third = "backbone.stem.0.weight", "backbone.stem.6.weight"
    if family.whole or first not in state or first not in target:
        return
    if (third in state) == (third in target):
        return
    has, wants = ("deep", "classic") if third in state else ("classic", "deep")
    raise CheckpointError(
        f"{origin}: {family.name} has the {has} stem and the network the {wants} one; set "
        f"TRAIN.stem to '{has}' with a backbone that has both, such as resnet50"
    )


def may_stay_new(key: str, family: Family, state: Mapping[str, Tensor], *, exact: bool) -> bool:
    """Return whether a file may lack `key`: whole parts of a network may be absent, not pieces."""
    if key.startswith(AUXILIARY):
        return is_spare(key, state)
    if exact:
        return False
    if key.startswith(DECODER):
        return DECODER not in prefixes_of(state)
    if key.startswith(STAGES):
        return STAGES not in prefixes_of(state)
    if not family.whole and not key.startswith(BACKBONE):
        return is_spare(key, state) or key.startswith(HEAD)
    for module in (".strip_pooling.", ".attention."):
        part, found, _ = key.partition(module)
        if found:
            return not any(k.startswith(part + module) for k in state)
    return False


def is_classifier(key: str) -> bool:
    """A head's or an image classifier's last layer, whose shape depends on the classes."""
    return ".classifier." in key or key.startswith(CLASSIFIER)


def is_spare(key: str, other_side: Mapping[str, Tensor]) -> bool:
    """True for an auxiliary head's or image classifier's tensor that has no counterpart at all."""
    part = next((p for p in (AUXILIARY, CLASSIFIER) if key.startswith(p)), None)
    return part is not None and part not in prefixes_of(other_side)


def lacks_decoder(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> bool:
    """Return whether the network has a decoder and the file has none."""
    return DECODER in prefixes_of(target) and DECODER not in prefixes_of(state)


def has_timm_backbone(target: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(TIMM.to_stripseg("")) for key in target)


def is_behind_timm(key: str, target: Mapping[str, Tensor]) -> bool:
    """True for layers after the features in timm's own network, such as its classifier."""
    part = TIMM.to_stripseg("") + key.removeprefix(TIMM.to_stripseg("")).partition(".")[0]
    return key.startswith(part) and not any(k.startswith(part + ".") for k in target)


def prefixes_of(state: Mapping[str, Tensor]) -> set[str]:
    """The parts of a network: "backbone.", "head.", ..."""
    return {key.partition(".")[0] + "." for key in state}


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
            for key in sorted(wrong_shape, key=lambda key: not is_classifier(key))[:3]
        ]
        more = f" and {len(wrong_shape) - 3} more" if len(wrong_shape) > 3 else ""
        parts.append("; ".join(shown) + more)
    if missing:
        parts.append(f"missing in the file: {first_few(missing)}")
    if extra:
        parts.append(f"not in the network: {first_few(extra)}")
    only_classifier = wrong_shape and all(is_classifier(key) for key in wrong_shape)
    cause = (
        "another class count: check DATA.classes"
        if only_classifier and not missing and not extra
        else "another architecture: check TRAIN.arch, backbone, width, stem, attention, "
        "decoder, spm_on and spm_stages"
    )
    return f"{origin} ({family.name}) does not fit the network, {cause}. " + ". ".join(parts)


def first_few(keys: list[str], limit: int = 3) -> str:
    """The first few keys and how many more there are."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
