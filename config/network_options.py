"""The options of `TRAIN` that make the network: backbone, head, norms."""

from typing import Annotated, Literal

from .option import Section, derived, option
from .types import (
    DEPTHS,
    POOL_SIZES,
    Choice,
    Either,
    Flag,
    ListOf,
    LowerName,
    Maybe,
    Real,
    Text,
    Whole,
)


class NetworkOptions(Section):
    """The network."""

    arch: Annotated[str, LowerName(also={"pspnet": "psp", "psanet": "psa"})] = option(
        "spnet",
        "the head: spnet, psp, psa, pyconvsegnet, fcn, or one that you have added; `classifier` "
        "names the class of a whole image",
    )
    layers: Annotated[int, Maybe(Choice(*DEPTHS))] = derived(
        "depth of the backbone; 50 unless it says so"
    )
    backbone: Annotated[str, Maybe(Text())] = derived(
        "`resnet50` (50s, 50d), `pyconvresnet50`, `pyconvhgresnet50` or another depth of these, or "
        "`timm/NAME`; `resnet<layers>` if empty"
    )
    stem: Annotated[
        Literal["deep", "classic", "cifar"], Choice("auto", "deep", "classic", "cifar")
    ] = option(
        "auto",
        "ResNet's first layers: `deep` three 3x3 convolutions, `classic` one 7x7, `cifar` one 3x3 "
        "that keeps the size; `auto` is classic for pyconvsegnet and deep for the others",
    )
    attention: Annotated[
        Literal["none", "strip_pool", "triplet", "eca", "gct", "gct_l1", "se", "cbam"],
        Choice("none", "strip_pool", "triplet", "eca", "gct", "gct_l1", "se", "cbam"),
    ] = option("none", "module behind the last norm of every block of a ResNet or PyConvResNet")
    output_stride: Annotated[Literal[8, 16, 32], Choice(8, 16, 32)] = option(
        8, "input size divided by the size of the last feature map"
    )
    dilate_first_block: Annotated[bool, Maybe(Flag())] = derived(
        "where dilation takes a stride's place, dilate the first block of the stage too; if empty "
        "True for psp, psa and pyconvsegnet, as released, and False for the others"
    )
    multi_grid: Annotated[
        bool | list[int] | None, Maybe(Either(Flag(), ListOf(Whole(1), filled=True)))
    ] = option(
        None,
        "dilations in the last stage: True for growing ones (4, 8, 16 at output stride 8), False "
        "for equal ones, a list of one per block; empty is True for spnet and False for others",
    )
    spm_on: Annotated[bool, Flag()] = option(True, "strip pooling modules in SPNet's backbone")
    spm_blocks: Annotated[
        list[Literal["none", "last", "all"] | list[int]],
        ListOf(Either(Choice("none", "last", "all"), ListOf(Whole(0))), length=4),
    ] = option(
        ["last", "last", "last", "all"],
        "the blocks with a strip pooling module, for each of the four stages: by word or number",
    )
    mixed_pooling_modules: Annotated[int, Whole(0)] = option(2, "how many SPNet's head has")
    mixed_pooling_sizes: Annotated[list[int], POOL_SIZES] = option(
        [20, 12], "grids that the short-range branch of the mixed pooling module pools to"
    )
    dropout: Annotated[float, Real(0, 1)] = option(0.1, "dropped share before the classifiers")
    sync_bn: Annotated[bool, Flag()] = option(True, "batch norm over all processes together")
    norm: Annotated[Literal["batch", "group"], Choice("batch", "group")] = option(
        "batch", "normalisation; `group` does not depend on the batch size"
    )
    use_ppm: Annotated[bool, Flag()] = option(True, "pyramid pooling in PSPNet's head")
    ppm_bins: Annotated[list[int], ListOf(Whole(1), filled=True)] = option(
        [1, 2, 3, 6], "PSPNet: sides of the grids that the pyramid pools to"
    )
    ppm_pooling: Annotated[Literal["average", "max"], Choice("average", "max")] = option(
        "average", "PSPNet: how the pyramid pools"
    )
    ppm_reduction: Annotated[bool, Flag()] = option(
        True, "PSPNet: a 1x1 convolution narrows every level of the pyramid"
    )
    psa_type: Annotated[Literal[0, 1, 2], Choice(0, 1, 2)] = option(
        2, "PSANet's attention: 0 collects, 1 distributes, 2 does both"
    )
    compact: Annotated[bool, Flag()] = option(False, "PSANet: its smaller variant")
    shrink_factor: Annotated[int, Whole(1)] = option(2, "PSANet: shrinks features for attention")
    mask_h: Annotated[int | None, Maybe(Whole(1))] = option(None, "PSANet: height of the mask, odd")
    mask_w: Annotated[int | None, Maybe(Whole(1))] = option(
        None, "its width; from the crop if empty"
    )
    normalization_factor: Annotated[float | None, Maybe(Real(above=0))] = option(
        1.0, "PSANet: divides the aggregated features; empty is the mask's height times width"
    )
    psa_softmax: Annotated[bool, Flag()] = option(True, "PSANet: softmax over the mask")
