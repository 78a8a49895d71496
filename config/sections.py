"""Every option there is: its type, its default and what it means.

The options of the network itself are in network_options.py. The section and key names are
semseg's, so that its YAML files and its users' fingers keep working. Options whose default depends
on others (`derived`) are filled in by checks.py while loading.
"""

from typing import Annotated, Literal

from pydantic import Field

from .network_options import NetworkOptions
from .option import Section, derived, option
from .types import (
    GPUS,
    PRECISIONS,
    URL,
    Choice,
    Either,
    FilePath,
    Flag,
    ListOf,
    LowerName,
    Maybe,
    Precision,
    Real,
    Text,
    Whole,
)


class DataSection(Section):
    """The images and labels."""

    dataset: Annotated[str, Maybe(LowerName())] = derived(
        "name in `dataset/catalog/`, which knows classes and colours; from the file's name if empty"
    )
    data_root: Annotated[str, FilePath()] = Field(description="folder that list entries start from")
    train_list: Annotated[str | None, Maybe(FilePath())] = option(
        None, "list of training images and labels; looked for as it stands, then in `data_root`"
    )
    val_list: Annotated[str | None, Maybe(FilePath())] = option(
        None, "the same for the validation during training"
    )
    outside_root: Annotated[bool, Flag()] = option(
        False, "whether lists may name files outside of `data_root`"
    )
    packed: Annotated[str | None, Maybe(FilePath())] = option(
        None,
        "folder of a packed copy of the lists, made by `tool/prepare.py pack`, that training reads "
        "instead of the files; the samples are the same",
    )
    in_channels: Annotated[int, Whole(1)] = option(
        3, "of the image: 3 RGB, 1 grey, else the file's"
    )
    classes: Annotated[int, Whole(1, 65535)] = Field(description="number of classes, ids from 0")
    labels: Annotated[Literal["auto", "raw", "train_id"], Choice("auto", "raw", "train_id")] = (
        option(
            "auto",
            "what label files hold: `raw` the dataset's official ids, translated while loading; "
            "`train_id` 0 to classes - 1; `auto` finds out from the files",
        )
    )
    mean: Annotated[list[float], Maybe(ListOf(Real(0, 255), filled=True))] = derived(
        "mean of each channel; if empty ImageNet's 123.675, 116.28, 103.53 for RGB, else their mean"
    )
    std: Annotated[list[float], Maybe(ListOf(Real(0, 255, above=0), filled=True))] = derived(
        "standard deviation of each channel; if empty 58.395, 57.12, 57.375, like `mean`"
    )


class TrainSection(NetworkOptions):
    """The network and how it is trained."""

    train_h: Annotated[int, Whole(1)] = option(480, "height of the training crop")
    train_w: Annotated[int, Whole(1)] = option(480, "width of the training crop")
    scale_min: Annotated[float, Real(above=0)] = option(0.5, "smallest random scale")
    scale_max: Annotated[float, Real(above=0)] = option(2.0, "largest random scale")
    rotate_min: Annotated[float, Real(-180, 180)] = option(-10.0, "smallest random angle, degrees")
    rotate_max: Annotated[float, Real(-180, 180)] = option(10.0, "largest random angle, degrees")
    rotate_probability: Annotated[float, Real(0, 1)] = option(0.5, "share of images rotated")
    blur_probability: Annotated[float, Real(0, 1)] = option(0.5, "share of images blurred")
    flip_probability: Annotated[float, Real(0, 1)] = option(0.5, "share of images mirrored")
    crop_padding: Annotated[int, Whole(0)] = option(
        4, "classifier on CIFAR: black pixels added at each side before the random crop"
    )
    crop_area: Annotated[list[float], ListOf(Real(above=0, most=1), length=2)] = option(
        [0.08, 1.0],
        "classifier on folders of images: least and largest share of the picture that is cut out "
        "and resized to the crop",
    )
    zoom_factor: Annotated[Literal[1, 2, 4, 8], Choice(1, 2, 4, 8)] = option(
        8, "size of the training logits: 8 is the full size, 1 an eighth of it"
    )
    ignore_label: Annotated[int, Whole(0, 255)] = option(
        255, "label of pixels that count nowhere; not a class id"
    )
    aux_weight: Annotated[float, Real(0)] = option(
        0.4, "weight of the auxiliary loss on stage 3; 0 leaves the auxiliary head out"
    )
    loss: Annotated[Literal["cross_entropy", "ohem"], Choice("cross_entropy", "ohem")] = option(
        "cross_entropy", "`ohem` learns from the hardest pixels only"
    )
    ohem_threshold: Annotated[float, Real(0, 1)] = option(
        0.7, "OHEM: pixels whose class has at most this probability are hard"
    )
    ohem_min_kept: Annotated[int, Whole(0)] = option(100000, "OHEM: pixels kept at least")
    class_weights: Annotated[
        Literal["none", "auto"] | list[float],
        Maybe(Either(Choice("none", "auto"), ListOf(Real(above=0))), empty="none"),
    ] = option("none", "weights of the classes in the loss; `auto` counts the training labels")
    train_gpu: Annotated[list[int] | None, GPUS] = option(
        None, "GPUs to use; empty is every visible one, or the CPU without any; [] is the CPU"
    )
    workers: Annotated[int, Whole(0)] = option(
        4, "loader processes, shared by the training processes of a machine; at most one a CPU"
    )
    batch_size: Annotated[int | Literal["auto"], Either(Whole(1), Choice("auto"))] = option(
        16, "images per step, all processes together; `auto` finds the most that memory holds"
    )
    accumulation_steps: Annotated[int, Whole(1)] = option(
        1, "forward and backward passes that a step's batch is divided into, to save memory"
    )
    activation_checkpointing: Annotated[bool, Flag()] = option(
        False, "compute the backbone's blocks again in the backward pass: less memory, more time"
    )
    compile: Annotated[bool, Flag()] = option(
        False, "let torch.compile make kernels for the network; without it where that fails"
    )
    batch_size_val: Annotated[int, Whole(1)] = option(
        8, "windows (a classifier's images) per forward pass in the validation during training"
    )
    optimizer: Annotated[Literal["sgd", "adamw", "adam"], Choice("sgd", "adamw", "adam")] = option(
        "sgd",
        "`sgd` as in the papers; `adamw` learns faster from scratch, at a rate near 0.001; `adam` "
        "is the same but for a weight decay that is part of the gradient",
    )
    base_lr: Annotated[float, Real(above=0)] = option(0.01, "learning rate of the backbone")
    head_lr_factor: Annotated[float, Real(above=0)] = option(
        10.0, "the head's and the auxiliary head's learning rate in units of `base_lr`"
    )
    epochs: Annotated[int, Whole(1)] = option(100, "passes over the training list")
    start_epoch: Annotated[int, Whole(0)] = option(0, "first epoch of a run that resumes nothing")
    schedule: Annotated[Literal["poly", "step", "cosine"], Choice("poly", "step", "cosine")] = (
        option(
            "poly",
            "the learning rate: `poly` (1 - step / steps) ^ `power`, `cosine` half a wave down to "
            "0, `step` times `rate_decay` from each of the `milestones` on",
        )
    )
    power: Annotated[float, Real(0)] = option(0.9, "exponent of the poly learning rate schedule")
    milestones: Annotated[list[int], ListOf(Whole(1))] = option(
        [], "schedule step: after how many epochs the rate falls, such as [100, 150]"
    )
    rate_decay: Annotated[float, Real(above=0, most=1)] = option(
        0.1, "schedule step: what the rate is multiplied by"
    )
    warmup_epochs: Annotated[int, Whole(0)] = option(
        0, "epochs in which the rate grows evenly to `base_lr`; poly and cosine begin after them"
    )
    momentum: Annotated[float, Real(0, 1)] = option(0.9, "momentum of SGD")
    weight_decay: Annotated[float, Real(0)] = option(1e-4, "weight decay of SGD")
    mixup: Annotated[float, Real(0)] = option(
        0.0, "classifier: a of mixup's Beta(a, a), often 0.2; 0 is without"
    )
    cutmix: Annotated[float, Real(0)] = option(
        0.0, "classifier: a of CutMix's Beta(a, a), often 1; with `mixup` a coin decides each step"
    )
    average_decay: Annotated[float, Real(0, 1)] = option(
        0.0,
        "share that a moving average of the weights keeps at each step, such as 0.9999: it is what "
        "is validated and tested; 0 is without",
    )
    label_smoothing: Annotated[float, Real(0, 1)] = option(
        0.0, "share of the label that is spread evenly over all classes (cross entropy)"
    )
    manual_seed: Annotated[int | None, Maybe(Whole(0))] = option(
        None, "seed; empty is 0: every run is seeded"
    )
    print_freq: Annotated[int, Whole(1)] = option(10, "steps between two lines of the log")
    save_freq: Annotated[int, Whole(1)] = option(1, "epochs between two checkpoints")
    save_steps: Annotated[int | None, Maybe(Whole(1))] = option(
        None, "steps between two checkpoints within an epoch; empty leaves it to `save_minutes`"
    )
    save_minutes: Annotated[float | None, Maybe(Real(above=0))] = option(
        10.0, "minutes between two checkpoints within an epoch; empty switches these off"
    )
    keep_last: Annotated[int, Whole(1)] = option(2, "how many of the newest checkpoints to keep")
    save_path: Annotated[str, Maybe(FilePath())] = derived(
        "folder for checkpoints and log; `exp/<dataset>/<experiment>/model` if empty"
    )
    weight: Annotated[str | None, Maybe(FilePath())] = option(
        None, "weights to start from, of a whole network or a backbone: the file shows which"
    )
    pretrained: Annotated[str | None, Maybe(FilePath())] = option(
        None, "weights of the backbone to start from"
    )
    pretrained_optional: Annotated[bool, Flag()] = option(
        False, "without the file of `weight` or `pretrained`, say so and start from scratch"
    )
    resume: Annotated[str, Maybe(Either(Choice("auto", "none"), FilePath()), empty="auto")] = (
        option("auto", "`auto` the newest checkpoint of `save_path`, `none` a new start, or a file")
    )
    bad_data: Annotated[Literal["stop", "skip"], Choice("stop", "skip")] = option(
        "stop",
        "an image or label that cannot be used: stop the run, or say so and go on without it",
    )
    skipped_steps: Annotated[int, Whole(0)] = option(
        10, "steps in a row that may be skipped for a loss or gradient that is not finite"
    )
    evaluate: Annotated[bool, Flag()] = option(True, "validate during training")
    evaluate_freq: Annotated[int, Whole(1)] = option(1, "epochs between two validations")
    precision: Annotated[Precision, PRECISIONS] = option(
        "fp32", "arithmetic of the network; `auto` is bf16 where the hardware has it, else fp32"
    )
    channels_last: Annotated[bool, Flag()] = option(True, "memory layout; faster on most GPUs")
    deterministic: Annotated[bool, Flag()] = option(
        False, "only deterministic algorithms on GPUs: equal runs bit for bit, but slower"
    )
    tensorboard: Annotated[bool, Flag()] = option(True, "write curves for TensorBoard")
    sample_predictions: Annotated[int, Whole(0)] = option(4, "predictions shown per validation")


class DistributedSection(Section):
    """Several processes and machines."""

    dist_url: Annotated[str, URL] = option("tcp://127.0.0.1:6789", "where processes meet")
    dist_backend: Annotated[Literal["nccl", "gloo", "auto"], Choice("nccl", "gloo", "auto")] = (
        option("auto", "how processes talk; `auto` is nccl on GPUs and gloo on the CPU")
    )
    multiprocessing_distributed: Annotated[bool, Flag()] = option(
        True, "one process for each GPU; False trains with a single process"
    )
    world_size: Annotated[int, Whole(1)] = option(1, "number of machines")
    rank: Annotated[int, Whole(0)] = option(0, "number of this machine, from 0")
    processes: Annotated[int | None, Maybe(Whole(1))] = option(
        None, "processes on this machine; empty is one for each GPU, or one on the CPU"
    )
    timeout_minutes: Annotated[float, Real(above=0)] = option(
        30.0, "without progress for so long, the run ends and names the process that hangs"
    )
    max_restarts: Annotated[int, Whole(0)] = option(
        0, "how often processes that fail are started again, from the newest checkpoint"
    )
    use_apex: Annotated[bool, Flag()] = option(
        False, "older YAMLs: whether `opt_level` counts; PyTorch's own mixed precision is used"
    )
    opt_level: Annotated[
        Literal["O0", "O1", "O2", "O3"] | None, Maybe(Choice("O0", "O1", "O2", "O3"))
    ] = option(None, "older YAMLs: O0 is TRAIN.precision fp32, the others are fp16")
    keep_batchnorm_fp32: Annotated[bool | str | None, Maybe(Either(Flag(), Text()))] = option(
        None, "older YAMLs: no effect, batch norm always computes in fp32"
    )
    loss_scale: Annotated[
        float | Literal["dynamic"] | None, Maybe(Either(Real(above=0), Choice("dynamic")))
    ] = option(None, "first factor of the fp16 gradient scaler; empty and `dynamic` are PyTorch's")


class TestSection(Section):
    """Testing a trained network on a list of images."""

    test_list: Annotated[str | None, Maybe(FilePath())] = option(
        None, "list of images (and labels); looked for as it stands, then in `data_root`"
    )
    split: Annotated[Literal["train", "val", "test"], Choice("train", "val", "test")] = option(
        "val", "what the list is; `test` has no labels and is not scored"
    )
    base_size: Annotated[int, Whole(0)] = option(
        512, "long side of the image at scale 1; 0 is the image's own size"
    )
    test_h: Annotated[int, Maybe(Whole(1))] = derived("height of a window; train_h if empty")
    test_w: Annotated[int, Maybe(Whole(1))] = derived("width of a window; train_w if empty")
    scales: Annotated[list[float], ListOf(Real(above=0), filled=True, one_alone=True)] = option(
        [1.0], "scales whose scores are averaged; often 0.5, 0.75, ... 1.75"
    )
    flip: Annotated[bool, Flag()] = option(True, "average with the mirrored image's scores")
    has_prediction: Annotated[bool, Flag()] = option(
        False, "score the predictions already in `save_folder`, run no network"
    )
    index_start: Annotated[int, Whole(0)] = option(0, "first image of the list to take")
    index_step: Annotated[int, Whole(0)] = option(0, "how many images to take; 0 is all")
    test_gpu: Annotated[list[int] | None, GPUS] = option(None, "GPUs to use, like `train_gpu`")
    model_path: Annotated[str, Maybe(FilePath())] = derived(
        "checkpoint to test; `last.pth` in `TRAIN.save_path` if empty"
    )
    save_folder: Annotated[str, Maybe(FilePath())] = derived(
        "folder for predictions; `exp/<dataset>/<experiment>/result/<split>/ss` if empty, "
        "or `ms` with more than one scale"
    )
    colors_path: Annotated[str | None, Maybe(FilePath())] = option(
        None, "text file, a line `red green blue` per class; the catalog's colours if empty"
    )
    names_path: Annotated[str | None, Maybe(FilePath())] = option(
        None, "text file, a name per class and line; the catalog's names if empty"
    )
    batch_size: Annotated[int | None, Maybe(Whole(1))] = option(
        None,
        "windows per forward pass, mirrored ones included, or a classifier's images; empty is 8, "
        "and 2 windows on the CPU, where more take memory and save no time",
    )
    images_together: Annotated[int | None, Maybe(Whole(1))] = option(
        None, "images whose windows share forward passes; empty is 4 on GPUs and 1 on the CPU"
    )
    precision: Annotated[Precision, PRECISIONS] = option("fp32", "like TRAIN.precision")
    channels_last: Annotated[bool, Flag()] = option(True, "like TRAIN.channels_last")
    save_predictions: Annotated[bool, Flag()] = option(True, "write the predictions as PNG files")
    workers: Annotated[int, Whole(0)] = option(2, "loader processes, like those of TRAIN")
    best_mIoU_model_path: Annotated[str | None, Maybe(Text())] = option(
        None, "PyConvSegNet's YAMLs: no effect, `model_path` counts"
    )
    best_mIoU_save_folder: Annotated[str | None, Maybe(Text())] = option(
        None, "PyConvSegNet's YAMLs: no effect, `save_folder` counts"
    )
