"""Tables of how each author names the tensors of a network, beside the names of stripseg.

A family is recognised by the keys of a file, never by its name. To know another author's files,
add a `Family` here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Pairs = tuple[tuple[str, str], ...]  # (author, stripseg)


@dataclass(frozen=True)
class Family:
    """One author's names.

    Args:
        name: for messages and for `stripseg convert`.
        marks: regular expressions; each must match some key of the file as a whole.
        prefixes: how a key begins; the first pair that fits is applied.
        infixes: parts within a key, applied after the prefix, each at most once.
        unused: keys that have no place in the networks of stripseg.
        always: regular expressions; the author's program knows no network without such a key.
        never: a regular expression of keys that it does not know.
        whole: a whole segmentation network; otherwise a backbone, perhaps with a classifier.
    """

    name: str
    marks: tuple[str, ...]
    prefixes: Pairs = ()
    infixes: Pairs = ()
    unused: str | None = None
    whole: bool = True
    always: tuple[str, ...] = ()
    never: str | None = None

    def fits(self, keys: Iterable[str]) -> bool:
        keys = tuple(keys)
        return all(any(re.fullmatch(mark, key) for key in keys) for mark in self.marks)

    def to_stripseg(self, key: str) -> str:
        """The author's key -> stripseg's key."""
        return substitute(key, self.prefixes, self.infixes)

    def to_author(self, key: str) -> str:
        """stripseg's key -> the author's key."""
        prefixes, infixes = (
            tuple((stripseg, author) for author, stripseg in pairs)
            for pairs in (self.prefixes, self.infixes)
        )
        return substitute(key, prefixes, infixes)


def substitute(key: str, prefixes: Pairs, infixes: Pairs) -> str:
    for old, new in prefixes:
        if key.startswith(old):
            key = new + key[len(old) :]
            break
    for old, new in infixes:
        key = key.replace(old, new, 1)
    return key


def below(author: str, stripseg: str, pairs: Pairs) -> Pairs:
    """`pairs` of a module, with its prefix in the author's names and in stripseg's."""
    return tuple((author + old, stripseg + new) for old, new in pairs)


STRIP_POOLING_MODULE: Pairs = (
    ("conv1.", "rows.0."),
    ("bn1.", "rows.1."),
    ("conv2.", "columns.0."),
    ("bn2.", "columns.1."),
    ("conv3.", "fuse."),
)
MIXED_POOLING_MODULE: Pairs = (
    ("conv1_1.", "reduce_short."),
    ("conv1_2.", "reduce_long."),
    ("conv2_0.", "full."),
    ("conv2_1.", "pooled.0."),
    ("conv2_2.", "pooled.1."),
    ("conv2_3.", "columns."),
    ("conv2_4.", "rows."),
    ("conv2_5.", "fuse_short."),
    ("conv2_6.", "fuse_long."),
    ("conv3.", "expand."),
)
STRIPS_IN_BLOCKS = below(".spm.", ".strip_pooling.", STRIP_POOLING_MODULE)
PYRAMIDAL_CONVOLUTION: Pairs = tuple((f".conv2_{i + 1}.", f".levels.{i}.") for i in range(4))

SEMSEG_NETWORK: Pairs = (
    ("layer0.", "backbone.stem."),
    ("layer", "backbone.layer"),
    ("aux.4.", "auxiliary_head.classifier."),
    ("aux.", "auxiliary_head.conv."),
)
SEMSEG_CLASSIFIER: Pairs = (("cls.4.", "head.classifier."), ("cls.", "head.conv."))
PYRAMID_POOLING: Pairs = tuple(
    (f"ppm.features.{level}.{author}.", f"head.pyramid.reduce.{level}.{stripseg}.")
    for level in range(16)
    for author, stripseg in ((1, 0), (2, 1))
)
POINTWISE_SPATIAL_ATTENTION: Pairs = (
    ("psa.reduce.", "head.attention.0.reduce."),
    ("psa.attention.", "head.attention.0.predict."),
    ("psa.reduce_p.", "head.attention.1.reduce."),
    ("psa.attention_p.", "head.attention.1.predict."),
    ("psa.proj.", "head.project."),
)
PYRAMIDAL_HEAD: Pairs = (
    *(
        (f"pyconvhead.local_context.layers.{3 * i + j}.", f"head.local_context.{i}.{j}.")
        for i in range(3)
        for j in range(2)
    ),
    *(
        (f"pyconvhead.global_context.features.{3 * i + j + 1}.", f"head.global_context.{i}.{j}.")
        for i in range(3)
        for j in range(2)
    ),
    ("pyconvhead.merge_context.features.", "head.merge."),
    ("cls.1.", "head.classifier."),
)
CLASSIC_STEM: Pairs = (
    ("conv1.", "backbone.stem.0."),
    ("bn1.", "backbone.stem.1."),
    ("layer", "backbone.layer"),
    ("fc.", "classifier."),
)

FAMILIES = (
    Family("stripseg", (r"backbone\.(stem|network)\..+", r"head\..+")),
    # perhaps with a classifier
    Family("stripseg encoder", (r"backbone\.(stem|network)\..+",), whole=False),
    Family(
        "stripseg backbone",
        (r"stem\.0\.weight", r"layer1\.0\..+"),
        (("", "backbone."),),
        whole=False,
    ),
    Family(
        "SPNet",
        (r"pretrained\.conv1\.0\.weight", r"head\.trans_layer\.0\.weight"),
        (
            ("pretrained.bn1.", "backbone.stem.7."),
            ("pretrained.conv1.", "backbone.stem."),
            ("pretrained.", "backbone."),
            ("head.trans_layer.", "head.reduce."),
            *below("head.strip_pool1.", "head.mixed_pooling.0.", MIXED_POOLING_MODULE),
            *below("head.strip_pool2.", "head.mixed_pooling.1.", MIXED_POOLING_MODULE),
            ("head.score_layer.4.", "head.classifier."),
            ("head.score_layer.", "head.conv."),
            ("auxlayer.conv5.4.", "auxiliary_head.classifier."),
            ("auxlayer.conv5.", "auxiliary_head.conv."),
        ),
        STRIPS_IN_BLOCKS,
        unused=r"pretrained\.fc\..+",
        always=(
            r"pretrained\.conv1\.6\.weight",
            r"pretrained\.bn1\.running_mean",
            r"pretrained\.layer1\.0\.conv3\.weight",
            r"head\.strip_pool2\.conv3\.1\.running_mean",
            r"head\.strip_pool2\.conv2_5\.0\.weight",  # both branches
            r"head\.strip_pool2\.conv2_6\.0\.weight",
        ),
        never=r".*\.levels\..+|.*\.downsample\.2\.weight|head\.mixed_pooling\..+",
    ),
    Family(
        "semseg PSANet",
        (r"layer0\.0\.weight", r"psa\.reduce\.0\.weight"),
        (*SEMSEG_NETWORK, *SEMSEG_CLASSIFIER, *POINTWISE_SPATIAL_ATTENTION),
        PYRAMIDAL_CONVOLUTION,
    ),
    Family(
        "PyConvSegNet",
        (r"layer0\.0\.weight", r"pyconvhead\..+"),
        (*SEMSEG_NETWORK, *PYRAMIDAL_HEAD),
        PYRAMIDAL_CONVOLUTION,
    ),
    Family(
        "semseg PSPNet",
        (r"layer0\.0\.weight", r"cls\.4\.weight"),
        (*SEMSEG_NETWORK, *SEMSEG_CLASSIFIER, *PYRAMID_POOLING),
        PYRAMIDAL_CONVOLUTION,
    ),
    Family(
        "Encoding backbone",
        (r"conv1\.0\.weight", r"conv1\.6\.weight", r"bn1\.weight", r"layer1\.0\.conv1\.weight"),
        (
            ("bn1.", "backbone.stem.7."),
            ("conv1.", "backbone.stem."),
            ("layer", "backbone.layer"),
            ("fc.", "classifier."),
        ),
        STRIPS_IN_BLOCKS,
        whole=False,
    ),
    Family(
        "semseg backbone",
        (r"conv1\.weight", r"conv2\.weight", r"conv3\.weight", r"layer1\.0\.conv1\.weight"),
        (
            ("conv1.", "backbone.stem.0."),
            ("bn1.", "backbone.stem.1."),
            ("conv2.", "backbone.stem.3."),
            ("bn2.", "backbone.stem.4."),
            ("conv3.", "backbone.stem.6."),
            ("bn3.", "backbone.stem.7."),
            ("layer", "backbone.layer"),
            ("fc.", "classifier."),
        ),
        whole=False,
    ),
    Family(
        "PyConv backbone",
        (r"conv1\.weight", r"bn1\.weight", r"layer1\.0\..+\.conv2_1\.weight"),
        CLASSIC_STEM,
        PYRAMIDAL_CONVOLUTION,
        whole=False,
    ),
    Family(
        "torchvision backbone",
        (r"conv1\.weight", r"bn1\.weight", r"layer1\.0\.conv1\.weight"),
        CLASSIC_STEM,
        whole=False,
    ),
)


TIMM = Family("timm backbone", (), (("", "backbone.network.model."),), whole=False)
"""Every network of timm has names of its own; files are recognised by the network to load."""


EFFICIENTNET_PYTORCH = Family(
    "EfficientNet-PyTorch", (r"_conv_stem\.weight", r"_blocks\.0\._depthwise_conv\.weight")
)
EFFICIENTNET_OUTSIDE: Pairs = (
    ("_conv_stem.", "conv_stem."),
    ("_bn0.", "bn1."),
    ("_conv_head.", "conv_head."),
    ("_bn1.", "bn2."),
    ("_fc.", "classifier."),
)
EFFICIENTNET_BLOCK: Pairs = (
    ("_expand_conv.", "conv_pw."),
    ("_bn0.", "bn1."),
    ("_depthwise_conv.", "conv_dw."),
    ("_bn1.", "bn2."),
    ("_se_reduce.", "se.conv_reduce."),
    ("_se_expand.", "se.conv_expand."),
    ("_project_conv.", "conv_pwl."),
    ("_bn2.", "bn3."),
)
EFFICIENTNET_FIRST_BLOCK: Pairs = (  # it has no expanding convolution
    ("_depthwise_conv.", "conv_dw."),
    ("_bn1.", "bn1."),
    ("_se_reduce.", "se.conv_reduce."),
    ("_se_expand.", "se.conv_expand."),
    ("_project_conv.", "conv_pw."),
    ("_bn2.", "bn2."),
)


def timm_efficientnet(state: Mapping) -> dict:
    """An EfficientNet's tensors under the names of timm's `tf_efficientnet_...`.

    EfficientNet-PyTorch (github.com/lukemelas) numbers blocks throughout, timm within stages; the
    blocks of a stage are those in a row that put out as many channels.
    """
    places: dict[str, str] = {}  # "_blocks.3." -> "blocks.2.0."
    channels: list[int] = []
    stage = index = -1
    for number in range(len(state)):
        project = state.get(f"_blocks.{number}._project_conv.weight")
        if project is None:
            break
        new_stage = not channels or channels[-1] != project.shape[0]
        channels.append(project.shape[0])
        stage, index = (stage + 1, 0) if new_stage else (stage, index + 1)
        places[f"_blocks.{number}."] = f"blocks.{stage}.{index}."
    renamed = {}
    for key, value in state.items():
        block = next((b for b in places if key.startswith(b)), None)
        if block is None:
            renamed[substitute(key, EFFICIENTNET_OUTSIDE, ())] = value
            continue
        expands = f"{block}_expand_conv.weight" in state
        inside = EFFICIENTNET_BLOCK if expands else EFFICIENTNET_FIRST_BLOCK
        renamed[places[block] + substitute(key.removeprefix(block), inside, ())] = value
    return renamed


def recognise(keys: Iterable[str], target: Iterable[str] = ()) -> Family | None:
    """The family of a file's keys (without `module.`), or None.

    The first that fits: in `FAMILIES` a family stands before those whose marks its files have, too.

    Args:
        target: keys of the network to load. A file that has all of its backbone's, which you may
            have added under names of your own, is stripseg's.
    """
    keys = frozenset(keys)
    known = next((family for family in FAMILIES if family.fits(keys)), None)
    backbone = [key for key in target if key.startswith("backbone.")]
    if known is None and backbone and keys.issuperset(backbone):
        return FAMILIES[0] if any(key.startswith("head.") for key in keys) else FAMILIES[1]
    return known


def authors_keys(state: Mapping, family: Family) -> dict:
    """The tensors of `state` under the author's names.

    Raises:
        ValueError: the author has no name for some of them.
    """
    renamed = {family.to_author(key): value for key, value in state.items()}
    begins = tuple(stripseg for _, stripseg in family.prefixes)
    stray = [
        key
        for key, author in zip(state, renamed, strict=False)
        if not key.startswith(begins)
        or ".strip_pooling." in author
        or family.to_stripseg(author) != key
    ]
    if stray or not family.fits(renamed):
        raise ValueError(
            f"{family.name} has no names for this network, such as {', '.join(stray[:3])}"
        )
    missing = [mark for mark in family.always if not any(re.fullmatch(mark, k) for k in renamed)]
    strange = [key for key in renamed if family.never and re.fullmatch(family.never, key)]
    if missing or strange:
        raise ValueError(
            f"{family.name}'s program has no such network: "
            + "; ".join([f"it lacks {mark.replace(chr(92), '')}" for mark in missing] + strange[:3])
        )
    return renamed
