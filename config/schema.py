"""Every option there is: its type, its default and its meaning.

    config = load_config("config/ade20k/ade20k_spnet50.yaml")  # load.py
    config.TRAIN.base_lr

The section and key names are semseg's, so that its YAML files work here. An option is declared
once: its annotation and bounds say what a value may be (types.py makes a check and words of them),
`derived` ones are filled in from the others while loading (validate.py). docs/config.md holds the
tables that `python -m stripseg.config.schema` prints.
"""

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from . import limits
from .types import (
    URL,
    FilePath,
    GPUList,
    LowerName,
    Name,
    PoolSizes,
    Precision,
    WordOrWeights,
    kind_of,
)

COMMAND_LINE = "command line"
AUTO, TIMM = "auto", "timm"  # words of TRAIN.pretrained
CLASSIFIER = "classifier"  # the TRAIN.arch that names the class of a whole image
LOSSES = ("cross_entropy", "dice", "lovasz", "focal", "boundary", "ohem")
IGNORED_IMAGE = -1  # label of an image that counts nowhere; of a pixel: TRAIN.ignore_label

Key = tuple[str, ...]  # ("TRAIN", "base_lr")
Origins = Mapping[Key, str]  # the file (or the command line) that gave the key


def option(default: Any, description: str, **properties: Any) -> Any:
    """Declare an option.

    Args:
        default: its value where nothing is given.
        description: completes the sentence "The option is the ...", in the docs' tables.
        properties: `ge`, `gt`, `le`: bounds of a number, or of each number of a list; `min_length`,
            `length`: of a list; `single_allowed`: one value stands for a list of one; `empty`: what
            an empty value in YAML stands for; `arch`: the only TRAIN.arch that the option is for;
            `compared=False`: a checkpoint's network is the same with another value.
    """
    return Field(default, description=description, json_schema_extra=properties)


def required(description: str, **properties: Any) -> Any:
    """Declare an option that every config must give."""
    return Field(description=description, json_schema_extra=properties)


def derived(description: str, **properties: Any) -> Any:
    """Declare an option that may be left empty; validate.py then derives it from the others."""
    return option(None, description, derived=True, **properties)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="plain")
    @classmethod
    def _check(cls, value: Any, info: ValidationInfo) -> Any:
        """Turn what YAML gives into a plain value, or say what is expected."""
        return kind_of(cls.model_fields[info.field_name]).validate(value)


class DataSection(Section):
    """The images and labels."""

    dataset: Annotated[str, LowerName()] = derived(
        "name in `dataset/catalog/`, which knows classes and colours; from the file's name if "
        "empty",
    )
    data_root: FilePath = required("folder that list entries start from")
    train_list: FilePath | None = option(
        None,
        "list of training images and labels; looked for as it stands, then in `data_root`",
    )
    val_list: FilePath | None = option(None, "the same for the validation during training")
    outside_root: bool = option(False, "whether lists may name files outside of `data_root`")
    packed: FilePath | None = option(
        None,
        "folder of a packed copy of the lists, made by `stripseg prepare pack`, that training "
        "reads instead of the files; the samples are the same",
    )
    in_channels: int = option(
        3, "of the image: 3 RGB, 1 grey, else the file's", ge=1, le=limits.CHANNELS
    )
    classes: int = required("number of classes, ids from 0", ge=1, le=65535)
    labels: Literal["auto", "raw", "train_id"] = option(
        "auto",
        "what label files hold: `raw` the dataset's official ids, translated while loading; "
        "`train_id` 0 to classes - 1; `auto` finds out from the files",
    )
    mean: list[float] = derived(
        "mean of each channel; if empty that of the weights with `TRAIN.pretrained` auto or timm, "
        "else ImageNet's 123.675, 116.28, 103.53 for RGB; their mean for other images",
        ge=0,
        le=255,
        min_length=1,
    )
    std: list[float] = derived(
        "standard deviation of each channel; if empty 58.395, 57.12, 57.375, like `mean`",
        le=255,
        gt=0,
        min_length=1,
    )


class NetworkOptions(Section):
    """The network."""

    arch: Annotated[str, LowerName(also={"pspnet": "psp", "psanet": "psa"})] = option(
        "spnet",
        "the head: spnet, psp, psa, pyconvsegnet, fcn, or one that you have added; `classifier` "
        "names the class of a whole image",
    )
    layers: Literal[18, 34, 50, 101, 152] = derived(
        "depth of the backbone; 50 unless it says so", compared=False
    )
    backbone: str = derived(
        "`resnet50` (50s, 50d), `pyconvresnet50`, `pyconvhgresnet50` or another depth of these, "
        "or `timm/NAME`; `resnet<layers>` if empty",
    )
    stem: Literal["auto", "deep", "classic", "cifar"] = option(
        "auto",
        "ResNet's first layers: `deep` three 3x3 convolutions, `classic` one 7x7, `cifar` one "
        "3x3 that keeps the size; `auto` is classic for pyconvsegnet and deep for the others",
    )
    width: float = option(
        1.0,
        "channels of a ResNet or PyConvResNet, and with them of the head, as a factor of the "
        "paper's: 0.5 halves them; each is a multiple of 8",
        gt=0,
        le=limits.WIDTH,
    )
    attention: Literal["none", "strip_pool", "triplet", "eca", "gct", "gct_l1", "se", "cbam"] = (
        option(
            "none",
            "module behind the last norm of every block of a ResNet or PyConvResNet",
        )
    )
    output_stride: Literal[8, 16, 32] = option(
        8,
        "input size divided by the size of the last feature map",
    )
    dilate_first_block: bool = derived(
        "where dilation takes a stride's place, dilate the first block of the stage too; if "
        "empty True for psp, psa and pyconvsegnet, as released, and False for the others",
    )
    multi_grid: bool | list[int] | None = option(
        None,
        "dilations in the last stage: True for growing ones (4, 8, 16 at output stride 8), "
        "False for equal ones, a list of one per block; empty is True for spnet and False for "
        "others",
        ge=1,
        min_length=1,
    )
    decoder: Literal["none", "deeplabv3plus"] = option(
        "none",
        "what stands behind the head: `deeplabv3plus` joins its features with those of the first "
        "stage and classifies at stride 4, for thin and small things",
    )
    align_corners: bool = option(
        True,
        "how logits, and the features that a `decoder` takes, are enlarged: True as semseg does, "
        "exact for a ResNet and sizes of `output_stride` n + 1; False for crops and windows that "
        "the largest stride divides",
    )
    spm_on: bool = option(True, "strip pooling modules in SPNet's backbone", arch="spnet")
    spm_blocks: list[Literal["none", "last", "all"] | list[int]] = option(
        ["last", "last", "last", "all"],
        "the blocks with a strip pooling module, for each of the four stages: by word or number",
        ge=0,
        length=4,
        arch="spnet",
    )
    spm_stages: list[int] = option(
        [],
        "the stages, 1 to 4, whose features pass a strip pooling module between the backbone and "
        "the head, with any backbone: 4 is what the head sees, 1 the `decoder`, 3 the auxiliary "
        "head",
        ge=1,
        le=4,
        arch="spnet",
    )
    strip_pooling: Literal["average", "max"] = option(
        "average",
        "how strips are pooled, in the strip and the mixed pooling modules; the paper averages",
        arch="spnet",
    )
    spm_control: bool = option(
        False,
        "for ablations: in place of strip pooling modules 1x1 convolutions with about as many "
        "parameters (7 C^2 + 9 C instead of 7 C^2 + 5 C)",
        arch="spnet",
    )
    mixed_pooling_modules: int = option(
        2, "how many SPNet's head has", ge=0, le=limits.MODULES, arch="spnet"
    )
    mixed_pooling_sizes: PoolSizes = option(
        [20, 12],
        "grids that the short-range branch of the mixed pooling module pools to",
        arch="spnet",
    )
    mixed_pooling_branches: Literal["both", "short", "long"] = option(
        "both",
        "for ablations: the branches of the mixed pooling module, `short` its pyramid and `long` "
        "its strips",
        arch="spnet",
    )
    dropout: float = option(0.1, "dropped share before the classifiers", ge=0, le=1, compared=False)
    drop_path: float = option(
        0.0,
        "share of the residual branches that are left out in training, growing with depth up to "
        "it (stochastic depth), in the backbones of timm that have it",
        ge=0,
        le=0.9,
        compared=False,
    )
    sync_bn: bool = option(True, "batch norm over all processes together", compared=False)
    norm: Literal["batch", "group"] = option(
        "batch",
        "normalisation; `group` does not depend on the batch size",
    )
    use_ppm: bool = option(True, "pyramid pooling in PSPNet's head", arch="psp")
    ppm_bins: list[int] = option(
        [1, 2, 3, 6],
        "PSPNet: sides of the grids that the pyramid pools to",
        ge=1,
        le=limits.GRID,
        min_length=1,
        arch="psp",
    )
    ppm_pooling: Literal["average", "max"] = option(
        "average",
        "PSPNet: how the pyramid pools",
        arch="psp",
    )
    ppm_reduction: bool = option(
        True,
        "PSPNet: a 1x1 convolution narrows every level of the pyramid",
        arch="psp",
    )
    psa_type: Literal[0, 1, 2] = option(
        2,
        "PSANet's attention: 0 collects, 1 distributes, 2 does both",
        arch="psa",
    )
    compact: bool = option(False, "PSANet: its smaller variant", arch="psa")
    shrink_factor: int = option(2, "PSANet: shrinks features for attention", ge=1, arch="psa")
    mask_h: int | None = option(
        None,
        "PSANet: height of the mask, odd",
        ge=1,
        le=limits.GRID,
        arch="psa",
        compared=False,
    )
    mask_w: int | None = option(
        None,
        "its width; from the crop if empty",
        ge=1,
        le=limits.GRID,
        arch="psa",
        compared=False,
    )
    normalization_factor: float | None = option(
        1.0,
        "PSANet: divides the aggregated features; empty is the mask's height times width",
        gt=0,
        arch="psa",
    )
    psa_softmax: bool = option(True, "PSANet: softmax over the mask", arch="psa")


class TrainSection(NetworkOptions):
    """The network and how it is trained."""

    train_h: int = option(480, "height of the training crop", ge=1, le=limits.SIDE)
    train_w: int = option(480, "width of the training crop", ge=1, le=limits.SIDE)
    scale_min: float = option(0.5, "smallest random scale", gt=0)
    scale_max: float = option(2.0, "largest random scale", gt=0)
    rotate_min: float = option(-10.0, "smallest random angle, degrees", ge=-180, le=180)
    rotate_max: float = option(10.0, "largest random angle, degrees", ge=-180, le=180)
    rotate_probability: float = option(0.5, "share of images rotated", ge=0, le=1)
    blur_probability: float = option(0.5, "share of images blurred", ge=0, le=1)
    flip_probability: float = option(0.5, "share of images mirrored", ge=0, le=1)
    color_jitter: list[float] = option(
        [0.0, 0.0, 0.0],
        "largest random change of brightness, contrast and saturation, such as [0.4, 0.4, 0.4] "
        "for factors from 0.6 to 1.4",
        ge=0,
        le=1,
        length=3,
    )
    rare_class_crop: float = option(
        0.0,
        "share of crops that are placed around a pixel of a class that is rare in the image",
        ge=0,
        le=1,
    )
    copy_paste: float = option(
        0.0,
        "share of crops into which half of the classes of another image's crop are pasted, rare "
        "ones more often",
        ge=0,
        le=1,
    )
    crop_padding: int = option(
        4,
        "classifier on CIFAR: black pixels added at each side before the random crop",
        ge=0,
        le=limits.GRID,
    )
    crop_area: list[float] = option(
        [0.08, 1.0],
        "classifier on folders of images: least and largest share of the image that is cut "
        "out and resized to the crop",
        gt=0,
        le=1,
        length=2,
    )
    zoom_factor: Literal[1, 2, 4, 8] = option(
        8,
        "size of the training logits: 8 is the full size, 1 the network's own: an eighth of it, "
        "a quarter with a `decoder`",
    )
    ignore_label: int = option(
        255,
        "label of pixels that count nowhere; not a class id",
        ge=0,
        le=255,
    )
    aux_weight: float = option(
        0.4,
        "weight of the auxiliary loss on stage 3; 0 leaves the auxiliary head out",
        ge=0,
    )
    loss: Annotated[str | dict[str, float], WordOrWeights(*LOSSES)] = option(
        "cross_entropy",
        "a loss, or a weighted sum of several: `dice` and `lovasz` compare regions, `focal` and "
        "`ohem` learn from hard pixels, `boundary` from those near other classes",
    )
    ohem_threshold: float = option(
        0.7,
        "OHEM: pixels whose class has at most this probability are hard",
        ge=0,
        le=1,
    )
    ohem_min_kept: int = option(100000, "OHEM: pixels kept at least", ge=0)
    focal_gamma: float = option(
        2.0, "focal loss: exponent; the higher, the less easy pixels count", ge=0
    )
    boundary_weight: float = option(
        4.0, "boundary loss: what a pixel beside another class weighs in addition to 1", gt=0
    )
    boundary_width: int = option(
        5,
        "boundary loss: pixels of the training logits within which that fades to 0",
        ge=1,
        le=limits.BOUNDARY,
    )
    class_weights: Literal["none", "auto"] | list[float] = option(
        "none",
        "weights of the classes in the loss; `auto` counts the training labels",
        gt=0,
        empty="none",
    )
    train_gpu: GPUList = option(
        None,
        "GPUs to use; empty is every visible one, or the CPU without any; [] is the CPU",
    )
    workers: int = option(
        4,
        "loader processes, shared by the training processes of a machine; at most one a CPU",
        ge=0,
        le=limits.WORKERS,
    )
    batch_size: int | Literal["auto"] = option(
        16,
        "images per step, all processes together; `auto` finds the most that memory holds",
        ge=1,
    )
    accumulation_steps: int = option(
        1,
        "micro-batches that a step's batch is divided into, to save memory (gradient accumulation)",
        ge=1,
    )
    activation_checkpointing: bool = option(
        False,
        "compute the backbone's blocks again in the backward pass: less memory, more time",
    )
    compile: bool | Literal["auto"] = option(
        "auto",
        "let torch.compile make kernels for the network; without it where that fails. `auto` does "
        "so on GPUs, for 5,000 steps and more, which make up for the minute that it takes",
    )
    batch_size_val: int = option(
        8,
        "windows (a classifier's images) per forward pass in the validation during training",
        ge=1,
    )
    optimizer: Literal["sgd", "adamw", "adam"] = option(
        "sgd",
        "`sgd` as in the papers; `adamw` learns faster from scratch, at a rate near 0.001; "
        "`adam` is the same but for a weight decay that is part of the gradient",
    )
    base_lr: float = option(0.01, "learning rate of the backbone", gt=0)
    head_lr_factor: float = option(
        10.0,
        "learning rate of the head, decoder, auxiliary head and classifier in units of `base_lr`; "
        "strip pooling modules in the backbone learn at `base_lr`",
        gt=0,
    )
    epochs: int = option(100, "passes over the training list", ge=1)
    start_epoch: int = option(
        0,
        "epochs that count as done where nothing is resumed: schedule and seeds start there",
        ge=0,
    )
    layer_lr_decay: float = option(
        1.0,
        "what the learning rate is multiplied by from one layer of the backbone to the one before "
        "it: a stage of a ResNet or PyConvResNet, a layer as timm groups them; 1 is without",
        gt=0,
        le=1,
    )
    schedule: Literal["poly", "step", "cosine"] = option(
        "poly",
        "the learning rate: `poly` (1 - step / steps) ^ `power`, `cosine` half a cosine "
        "period down to 0, `step` times `rate_decay` from each of the `milestones` on",
    )
    power: float = option(0.9, "exponent of the poly learning rate schedule", ge=0)
    milestones: list[int] = option(
        [],
        "schedule step: after how many epochs the rate falls, such as [100, 150]",
        ge=1,
    )
    rate_decay: float = option(0.1, "schedule step: what the rate is multiplied by", gt=0, le=1)
    warmup_epochs: int = option(
        0,
        "epochs in which the rate grows evenly to `base_lr`; poly and cosine begin after them",
        ge=0,
    )
    momentum: float = option(
        0.9, "momentum of SGD, and the first beta of Adam and AdamW", ge=0, le=1
    )
    weight_decay: float = option(
        0.0001, "weight decay of every optimizer; AdamW decouples it from the gradient", ge=0
    )
    decay_norms_and_biases: bool = option(
        True,
        "weight decay also on parameters of one dimension, norms and biases, and on tokens and "
        "positions of transformers; as in the papers",
    )
    clip_grad_norm: float | None = option(
        None,
        "largest norm of the gradient of all parameters together, such as 1; a longer one is "
        "shortened to it; empty is without",
        gt=0,
    )
    mixup: float = option(
        0.0, "classifier: alpha of mixup's Beta(alpha, alpha), often 0.2; 0 disables it", ge=0
    )
    cutmix: float = option(
        0.0,
        "classifier: alpha of CutMix's Beta(alpha, alpha), often 1; with `mixup` one of the two is "
        "chosen at random in each step",
        ge=0,
    )
    average_decay: float = option(
        0.0,
        "share that a moving average of the weights keeps at each step, such as 0.9999: it is "
        "what is validated and tested; 0 is without",
        ge=0,
        le=1,
    )
    label_smoothing: float = option(
        0.0,
        "share of the label that is spread evenly over all classes (losses by cross entropy)",
        ge=0,
        le=1,
    )
    manual_seed: int | None = option(None, "seed; empty is 0: every run is seeded", ge=0)
    print_freq: int = option(10, "steps between two lines of the log", ge=1)
    save_freq: int = option(1, "epochs between two checkpoints", ge=1)
    save_steps: int | None = option(
        None,
        "steps between two checkpoints within an epoch; empty leaves it to `save_minutes`",
        ge=1,
    )
    save_minutes: float | None = option(
        10.0,
        "minutes between two checkpoints within an epoch; empty switches these off",
        gt=0,
    )
    keep_last: int = option(2, "how many of the newest checkpoints to keep", ge=1)
    save_path: FilePath = derived(
        "folder for checkpoints and log; `exp/<dataset>/<experiment>/model` if empty",
    )
    weight: FilePath | None = option(
        None,
        "weights to start from, of a whole network or a backbone: the file shows which",
    )
    pretrained: Literal["auto", "timm"] | FilePath | None = option(
        None,
        "weights of the backbone to start from: a file; `auto` those that are on this machine, in "
        "`pretrained/`, from an installed package or timm's cache; `timm` lets timm download them",
    )
    pretrained_optional: bool = option(
        False,
        "without what `weight` or `pretrained` name, say so and start from scratch",
    )
    resume: Literal["auto", "none"] | FilePath = option(
        "auto",
        "`auto` the newest checkpoint of `save_path`, `none` a new start, or a file",
        empty="auto",
    )
    bad_data: Literal["stop", "skip"] = option(
        "stop",
        "an image or label that cannot be used: stop the run, or warn and leave it out",
    )
    skipped_steps: int = option(
        10,
        "steps in a row that may be skipped for a loss or gradient that is not finite",
        ge=0,
    )
    evaluate: bool = option(True, "validate during training")
    evaluate_freq: int = option(1, "epochs between two validations", ge=1)
    precision: Precision = option(
        "fp32",
        "arithmetic of the network; `auto` is bf16 where the hardware has it, else fp32",
    )
    channels_last: bool = option(True, "memory layout; faster on most GPUs")
    deterministic: bool = option(
        False,
        "only deterministic algorithms on GPUs: equal runs bit for bit, but slower",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = option(
        ["tensorboard"],
        "where curves and pictures go besides `epochs.jsonl`; wandb and mlflow need their packages",
        single_allowed=True,
    )
    tensorboard: bool = option(True, "False leaves `tensorboard` out of `trackers`")
    sample_predictions: int = option(4, "predictions shown to trackers per validation", ge=0)

    @property
    def losses(self) -> dict[str, float]:
        """{name: weight} of what `loss` says."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else self.loss


class DistributedSection(Section):
    """Several processes and machines."""

    dist_url: URL = option("tcp://127.0.0.1:6789", "rendezvous address of the processes")
    dist_backend: Literal["nccl", "gloo", "auto"] = option(
        "auto",
        "communication backend of the processes; `auto` is nccl on GPUs and gloo on the CPU",
    )
    multiprocessing_distributed: bool = option(
        True,
        "one process for each GPU; False trains with a single process",
    )
    world_size: int = option(1, "number of machines", ge=1)
    rank: int = option(0, "number of this machine, from 0", ge=0)
    processes: int | None = option(
        None,
        "processes on this machine; empty is one for each GPU, or one on the CPU",
        ge=1,
    )
    timeout_minutes: float = option(
        30.0,
        "without progress for so long, the run ends and names the process that hangs",
        gt=0,
    )
    max_restarts: int = option(
        0,
        "how often processes that fail are started again, from the newest checkpoint",
        ge=0,
    )
    use_apex: bool = option(
        False,
        "use NVIDIA apex's synchronized batch norm where an installed apex has one; in older YAMLs "
        "also whether `opt_level` counts",
    )
    loss_scale: float | Literal["dynamic"] | None = option(
        None,
        "fixed factor of the fp16 gradient scaler; empty and `dynamic`: PyTorch finds it",
        gt=0,
    )


class TestSection(Section):
    """Testing a trained network on a list of images."""

    test_list: FilePath | None = option(
        None,
        "list of images (and labels); looked for as it stands, then in `data_root`",
    )
    split: Literal["train", "val", "test"] = option(
        "val",
        "what the list is; `test` has no labels and is not scored",
    )
    base_size: int = option(
        512,
        "long side of the image at scale 1; 0 is the image's own size",
        ge=0,
        le=limits.SIDE,
    )
    test_h: int = derived("height of a window; train_h if empty", ge=1, le=limits.SIDE)
    test_w: int = derived("width of a window; train_w if empty", ge=1, le=limits.SIDE)
    scales: list[float] = option(
        [1.0],
        "scales whose scores are averaged; often 0.5, 0.75, ... 1.75",
        gt=0,
        le=limits.SCALE,
        min_length=1,
        single_allowed=True,
    )
    flip: bool = option(True, "average with the mirrored image's scores")
    has_prediction: bool = option(
        False,
        "score the predictions already in `save_folder`, run no network",
    )
    index_start: int = option(0, "first image of the list to take", ge=0)
    index_step: int = option(0, "how many images to take; 0 is all", ge=0)
    test_gpu: GPUList = option(None, "GPUs to use, like `train_gpu`")
    model_path: FilePath = derived("checkpoint to test; `last.pth` in `TRAIN.save_path` if empty")
    save_folder: FilePath = derived(
        "folder for predictions; `exp/<dataset>/<experiment>/result/<split>/ss` if empty, or "
        "`ms` with more than one scale",
    )
    colors_path: FilePath | None = option(
        None,
        "text file, a line `red green blue` per class; the catalog's colours if empty",
    )
    names_path: FilePath | None = option(
        None,
        "text file, a name per class and line; the catalog's names if empty",
    )
    batch_size: int | None = option(
        None,
        "windows per forward pass, mirrored ones included, or a classifier's images; empty is "
        "8, and 2 windows on the CPU, where more take memory and save no time",
        ge=1,
    )
    images_together: int | None = option(
        None,
        "images whose windows share forward passes; empty is 4 on GPUs and 1 on the CPU",
        ge=1,
    )
    precision: Precision | None = option(
        None,
        "arithmetic of the network; empty is fp32 on the CPU, and on GPUs what `TRAIN.precision` "
        "says, in which validation during training computes as well",
    )
    compile: bool | Literal["auto"] = option(
        "auto",
        "let torch.compile make kernels for windows and their scores; without it where that fails. "
        "`auto` makes the one that follows the network, on GPUs, for 500 images and more",
    )
    channels_last: bool = option(True, "like TRAIN.channels_last")
    save_predictions: bool = option(True, "write the predictions as PNG files")
    report: bool = option(True, "write `report.html`: figures, confusions and pictures in one page")
    workers: int = option(2, "loader processes, like those of TRAIN", ge=0, le=limits.WORKERS)


class Config(BaseModel):
    """A run: four sections of options, and where they came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: str
    DATA: DataSection
    TRAIN: TrainSection
    Distributed: DistributedSection
    TEST: TestSection
    source: str = Field(exclude=True)  # the YAML file, as it was named
    overrides: tuple[str, ...] = Field(default=(), exclude=True)  # KEY VALUE ... of the command
    origins: dict[Key, str] = Field(default={}, exclude=True)
    notices: list[str] = Field(default=[], exclude=True)  # what became of older keys

    @field_validator("experiment", mode="plain")
    @classmethod
    def _check_name(cls, value: Any) -> str:
        return Name().validate(value)

    @property
    def classifies(self) -> bool:
        """Whether whole images are classified, not their pixels."""
        return self.TRAIN.arch == CLASSIFIER

    def origin(self, *keys: str) -> str:
        """Return where options such as `DATA.classes` were given: the command line if any was."""
        given = [
            self.origins[key] for name in keys if (key := tuple(name.split("."))) in self.origins
        ]
        return COMMAND_LINE if COMMAND_LINE in given else (*given, self.source)[0]

    def command_arguments(self) -> str:
        """Return the words that name this config to another command, quoted for a shell."""
        return shlex.join(["--config", self.source, *self.overrides])

    def __eq__(self, other: object) -> bool:
        """Equal options make equal configs, whichever files they came from."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()


SECTIONS: dict[str, type[Section]] = {
    "DATA": DataSection,
    "TRAIN": TrainSection,
    "Distributed": DistributedSection,
    "TEST": TestSection,
}


def reference() -> str:
    """Return all options as tables in Markdown."""
    return "\n".join(_table(name, section) for name, section in SECTIONS.items())


def _table(name: str, section: type[Section]) -> str:
    lines = [f"## {name}", "", section.__doc__ or "", ""]
    lines += ["| option | default | value | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{key}` | {_default(field)} | {kind_of(field).phrase} | {field.description} |"
        for key, field in section.model_fields.items()
    ]
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    """Return the default as one would write it in YAML."""
    if field.is_required():
        return "required"
    return "empty" if field.default is None else f"`{field.default}`".replace("'", "")


if __name__ == "__main__":
    print(reference(), end="")
