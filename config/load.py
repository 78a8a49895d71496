"""From YAML files and the command line to one checked Config.

    config = load_config("config/ade20k/ade20k_spnet50.yaml", ["TRAIN.base_lr", "0.02"])

Defaults < the YAML named by `base:` < the YAML itself < overrides; sections are merged key by key,
lists are replaced.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import ConfigError
from .legacy import OLD_KEYS, Tree, drop_retired, retire, translate
from .schema import COMMAND_LINE, SECTIONS, Config, Key
from .types import nearest, shown
from .validate import backbone_depth, fill_in, problems
from .yaml_file import parse_yaml, read_yaml

TOP_LEVEL = ("base", "experiment")  # what a YAML may say outside its sections
SIZE = "TRAIN.train_h and TRAIN.train_w"
# what Ultralytics, Lightning and others call our options
ELSEWHERE = {
    "amp": "TRAIN.precision",
    "batch": "TRAIN.batch_size",
    "crop_size": SIZE,
    "image_size": SIZE,
    "img_size": SIZE,
    "imgsz": SIZE,
    "learning_rate": "TRAIN.base_lr",
    "lr": "TRAIN.base_lr",
    "lr0": "TRAIN.base_lr",
    "num_classes": "DATA.classes",
    "num_workers": "TRAIN.workers",
    "output_dir": "TRAIN.save_path",
    "project": "TRAIN.save_path",
    "seed": "TRAIN.manual_seed",
}
OWN_DATA = (
    "Your own images become a dataset by: "
    "stripseg prepare custom --images DIR --labels DIR --name NAME"
)


@dataclass
class Layer:
    """What one file, or the command line, says."""

    where: str
    tree: Tree = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)  # what stands outside the sections


@dataclass
class Merged(Layer):
    """All layers as one, with each key's origin, and notices about older keys."""

    origins: dict[Key, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def load_config(path: str | Path, overrides: Sequence[Any] = ()) -> Config:
    """Read a YAML file, apply overrides such as `["TRAIN.base_lr", "0.02"]`, check everything.

    Raises ConfigError with one line for each mistake.
    """
    path = Path(path)
    dataset, experiment = _names_from(path)
    return _checked(_read_layers(path, []), overrides, str(path), dataset, experiment)


def config_from(
    content: Mapping[str, Any],
    overrides: Sequence[Any] = (),
    *,
    source: str,
    dataset: str = "data",
    experiment: str = "run",
) -> Config:
    """Check options that are in memory, {section: {key: value}} as a YAML file has them.

    Args:
        source: where they are from, for messages.
    Raises:
        ConfigError: one line for each mistake.
    """
    content = dict(content)
    top = {"experiment": content.pop("experiment")} if "experiment" in content else {}
    layer = Layer(source, _sections(content, source), top)
    return _checked([layer], overrides, source, dataset, experiment)


def _checked(
    layers: Sequence[Layer],
    overrides: Sequence[Any],
    source: str,
    dataset: str,
    experiment: str,
) -> Config:
    """Merge, validate, derive and check; `dataset` and `experiment` where no layer names them."""
    merged = _merge([*layers, _override_layer(overrides)])
    merged.notices += retire(merged.tree, merged.origins)
    values = {
        "experiment": experiment,
        "source": source,
        "overrides": tuple("null" if value is None else str(value) for value in overrides),
        "origins": merged.origins,
        "notices": merged.notices,
    }
    try:
        config = Config.model_validate({**values, **merged.top, **merged.tree})
    except ValidationError as error:
        raise ConfigError(explain(error, source, merged.origins)) from None
    config = fill_in(config, dataset)
    lines = [
        f"{config.origin(*('.'.join(key) for key in keys))}: {sentence}"
        for keys, sentence in problems(config)
    ]
    if lines:
        raise ConfigError("\n".join(lines))
    return config


def stored_config(content: Mapping[str, Any], source: str) -> Config:
    """Return the config that a checkpoint carries, of this or an earlier version.

    Raises:
        ConfigError: it has options that this version does not know.
    """
    if not isinstance(content, Mapping) or not all(
        isinstance(content.get(name, {}), Mapping) for name in SECTIONS
    ):
        raise ConfigError(f"{source}: its config is not a mapping of sections, which are mappings")
    tree = {name: dict(content.get(name, {})) for name in SECTIONS}
    drop_retired(tree)
    try:
        return Config.model_validate({**content, **tree, "source": source})
    except ValidationError as error:
        raise ConfigError(explain(error, source, {})) from None


def find_config(dataset: str, experiment: str) -> Path:
    """`config/<dataset>/<dataset>_<experiment>.yaml`, here or among those that came with us."""
    folders = [Path("config"), Path(__file__).parent]
    for folder in folders:
        path = folder / dataset / f"{dataset}_{experiment}.yaml"
        if os.path.isfile(path):  # unlike Path.is_file, False for an impossible name
            return path
    found = sorted({file for folder in folders for file in folder.glob("*/*_*.yaml")})
    found = [file for file in found if file.name.startswith(f"{file.parent.name}_")]
    datasets = sorted({file.parent.name for file in found})
    if dataset not in datasets:
        message = _not_found(f"no configs for the dataset {dataset}", dataset, datasets)
        raise ConfigError(f"{message}. {OWN_DATA}")
    experiments = {f.stem.removeprefix(f"{dataset}_") for f in found if f.parent.name == dataset}
    what = f"config/{dataset}/ has no experiment {experiment}"
    raise ConfigError(_not_found(what, experiment, sorted(experiments)))


def _not_found(what: str, name: str, known: list[str]) -> str:
    likely = nearest(name, known)
    there = f"there are {', '.join(known)}" if known else "there are none"
    return f"{what}; " + (f"did you mean {likely}? " if likely else "") + there


def _read_layers(path: Path, above: list[Path]) -> list[Layer]:
    """The layers of a file and of those it is based on, the lowest first."""
    content = read_yaml(path)
    if path.resolve() in above:
        raise ConfigError(f"{above[-1]}: base leads back to {path}")
    base, experiment = content.pop("base", None), content.pop("experiment", None)
    layer = Layer(str(path), _sections(content, str(path)))
    if experiment is not None:
        layer.top["experiment"] = experiment
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of a YAML file, not {shown(base)}")
    base_path = Path(os.path.normpath(path.parent / os.path.expanduser(base)))
    if not os.path.isfile(base_path):
        raise ConfigError(f"{path}: base {base} does not exist (looked for {base_path})")
    return [*_read_layers(base_path, [*above, path.resolve()]), layer]


def _sections(content: dict[Any, Any], where: str) -> Tree:
    """The sections of a YAML file, an empty one (`DATA:`) being a section without keys."""
    complaints = [unknown_section(name) for name in content if name not in SECTIONS]
    tree: Tree = {}
    for name in filter(content.__contains__, SECTIONS):
        tree[name] = {} if content[name] is None else content[name]
        if not isinstance(tree[name], dict):
            complaints.append(f"{name} must be a section of options, not {shown(content[name])}")
        else:
            tree[name] = {str(key): value for key, value in tree[name].items()}
    if complaints:
        raise ConfigError("\n".join(f"{where}: {complaint}" for complaint in complaints))
    return tree


def _override_layer(overrides: Sequence[Any]) -> Layer:
    layer = Layer(COMMAND_LINE)
    for key, value in given_options(overrides):
        if key == "experiment":
            layer.top[key] = value
            continue
        section, option = _split_key(str(key))
        layer.tree.setdefault(section, {})[option] = value
    return layer


def given_options(words: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """(key, value) of `epochs 5` and of `epochs=5`; text is read as YAML.

    Raises:
        ConfigError: a key without a value, or a value that is not YAML.
    """
    rest = iter(words)
    for key in rest:
        name, equals, value = key.partition("=") if isinstance(key, str) else (key, "", None)
        try:
            value = value if equals else next(rest)
        except StopIteration:
            raise ConfigError(
                f"{COMMAND_LINE}: {key} has no value; give options in pairs, such as: epochs 5"
            ) from None
        if isinstance(value, str):
            value = parse_yaml(value, f"{COMMAND_LINE}: {name} {shown(value)}", lines=False)
        yield name, value


def _split_key(key: str) -> tuple[str, str]:
    """("TRAIN", "base_lr") for `TRAIN.base_lr` and for `base_lr`.

    A bare name that TRAIN and TEST share (`batch_size`) is TRAIN's.
    """
    section, dot, option = key.partition(".")
    if dot:
        if section not in SECTIONS:
            raise ConfigError(f"{COMMAND_LINE}: {key}: {unknown_section(section)}")
        return section, option
    names = options_ever_named(key)
    if not names:
        raise ConfigError(f"{COMMAND_LINE}: {key} is not an option{suggestion(key)}")
    return _split_key(trains_first(names))


def _merge(layers: list[Layer]) -> Merged:
    merged = Merged("", {name: {} for name in SECTIONS})
    for layer in layers:
        notices = translate(layer.tree, merged.tree)
        merged.notices += [f"{layer.where}: {notice}" for notice in notices]
        if _apply_later_depth(layer.tree.get("TRAIN", {}), merged.tree["TRAIN"]):
            merged.origins["TRAIN", "backbone"] = layer.where
        merged.top.update(layer.top)
        merged.origins.update({(key,): layer.where for key in layer.top})
        for section, options in layer.tree.items():
            merged.tree[section].update(options)
            merged.origins.update({(section, key): layer.where for key in options})
    return merged


def _apply_later_depth(later: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """A later `layers` replaces the depth in an earlier `backbone`: resnet50 becomes resnet101.

    Returns whether it gave the backbone another depth.
    """
    name, layers = str(earlier.get("backbone")), later.get("layers")
    depth = backbone_depth(name)
    if later.get("backbone") is not None:
        earlier.pop("layers", None)
    elif layers is not None and depth is not None:
        earlier["backbone"] = name.removesuffix(str(depth)) + str(layers)
        return True
    return False


def _names_from(path: Path) -> tuple[str, str]:
    """Dataset and experiment of `<dataset>/<dataset>_<experiment>.yaml`, as far as they show."""
    stem, folder = path.stem, path.absolute().parent.name
    if stem.startswith(f"{folder}_"):
        dataset, experiment = folder, stem.removeprefix(f"{folder}_")
    elif "_" in stem.strip("_"):
        dataset, _, experiment = stem.strip("_").partition("_")
    else:
        dataset, experiment = folder, stem
    return _safe(dataset).lower() or "data", _safe(experiment) or "run"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).lstrip("-.")


def options_named(key: str) -> list[str]:
    """`TRAIN.base_lr` for `base_lr`: every section's option of that name."""
    return [f"{name}.{key}" for name, section in SECTIONS.items() if key in section.model_fields]


def options_ever_named(key: str) -> list[str]:
    """As `options_named`; of a former name, which is still read, the option of that time."""
    return options_named(key) or [f"{name}.{old}" for name, old in OLD_KEYS if old == key]


def trains_first(options: Sequence[str]) -> str:
    """Of the options that a bare name may mean TRAIN's, where semseg has it, or the first."""
    return next((option for option in options if option.startswith("TRAIN.")), options[0])


def option_meant(key: str) -> str:
    """`TRAIN.momentum` for `momentum`; a name with its section, or of no option, as it is."""
    return trains_first(options_named(key) or [key])


def unknown_section(name: object) -> str:
    """Return the message about a word that stands where a section should."""
    if options := options_named(str(name)):
        return f"{name} is not a section; it is an option, {' or '.join(options)}"
    likely = nearest(str(name), (*SECTIONS, *TOP_LEVEL))
    return f"{name} is not a section" + (f"; did you mean {likely}?" if likely else "")


def unknown_option(section: str, key: object) -> str:
    name = f"{section}.{key}"
    if elsewhere := options_named(str(key)):
        return f"{name} is not an option of {section}; it belongs to {' and '.join(elsewhere)}"
    if likely := nearest(str(key), SECTIONS[section].model_fields):
        return f"{name} is not an option; did you mean {section}.{likely}?"
    return f"{name} is not an option" + suggestion(str(key))


def suggestion(key: str) -> str:
    """What another library's word is called here, or the nearest option of any section."""
    if key in ELSEWHERE:
        return f"; it is called {ELSEWHERE[key]} here"
    sections = {option: name for name in SECTIONS for option in SECTIONS[name].model_fields}
    likely = nearest(key, sections)
    return f"; did you mean {sections[likely]}.{likely}?" if likely else ""


def explain(error: ValidationError, source: str, origins: Mapping[Key, str]) -> str:
    """Pydantic's report as one line per mistake."""
    lines = []
    for entry in error.errors(include_url=False):
        key = tuple(str(part) for part in entry["loc"])
        where = origins.get(key, source)
        lines.append(f"{where}: {_sentence(key, entry)}")
    return "\n".join(lines)


def _sentence(key: Key, entry: Mapping[str, Any]) -> str:
    name = ".".join(key)
    if entry["type"] == "extra_forbidden":
        return unknown_option(*key[:2]) if len(key) > 1 else unknown_section(name)
    if entry["type"] == "missing":
        description = SECTIONS[key[0]].model_fields[key[1]].description
        return f"{name} is missing: the {description}"
    return f"{name} {entry['ctx']['error']}"
