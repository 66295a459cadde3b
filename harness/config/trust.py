"""What somebody else's config may build: a checkpoint is data, and using it must not run its
author's code, read files that nobody named, or contact other machines.

Allowed are our own components, network and metric classes of the libraries, and a few builders by
name; none with an argument that loads code, a pickle, or anything remote. The user may allow more:
components by a dotted prefix, files by a directory. What a prefix allows is built without further
checks.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from harness.components import TARGET, inside, target_of, walk
from harness.data.notebook import MAIN, find_change
from harness.errors import ConfigError
from harness.hidden import Reference
from harness.objects import TAKE
from harness.wording import Keys, Mistake, short_repr

OWN = (
    "harness.networks",
    "harness.tasks",
    "harness.sources",
    "harness.treatments",
    "harness.schedules",
)
LIBRARIES = ("torch.nn", "torch.optim", "torchvision", "timm", "transformers", "torchmetrics")

# Ours that fetch data from elsewhere, or read formats that hold pickles
_REACHES_OUT = ("harness.sources.hub",)

# What a class of the libraries has to be
_KINDS = {
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "transformers.configuration_utils.PreTrainedConfig",
    "transformers.configuration_utils.PretrainedConfig",  # until transformers 4
}

# Functions that make networks, by where they are defined; torchvision also has one for each model
_BUILDERS = {
    "harness.networks.architecture.torchvision_architecture",
    "timm.models._factory.create_model",
    "torchvision.models._api.get_model",
    "transformers.modeling_utils.PreTrainedModel._from_config",
    "transformers.models.auto.auto_factory._BaseAutoModelClass.from_config",
    "transformers.models.auto.configuration_auto.AutoConfig.for_model",
}

# Arguments that import, unpickle or fetch what they are pointed at
_LOADING = re.compile(
    r"trust_remote_code|auto_map|\w*pretrained\w*|\w*name_or_path|(\w+_)?checkpoints?(_path|_file)?"
    r"|\w*ckpt\w*|weights|weights_\w+|\w*state_dict|cache_dir|code_revision|\w*repo_id|repo|\w*urls?"
    r"|use_timm_backbone|backbone|token|use_auth_token"
)
# Of how a network was made that may be trained further, not of weights
_SIZES = re.compile(r"pretrained_(window|image|img)_sizes?")

# The classes of torchmetrics that know of weights mean a way of counting
_COUNTING = ("linear", "quadratic")

# Of attention and experts in transformers; any other name may be fetched, and is code
_IMPLEMENTATION = re.compile(r"\w*_implementation\w*")
_BUILT_IN = ("eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")

# Texts for people, which may look like anything
_FREE = ("id2label", "label2id")

# Places that are no file here, by how their names begin
_SCHEME = re.compile(
    r"\w[\w+.-]*://|(https?|ftps?|file|data|pipe|concat|subfile|crypto|cache|rtm?p\w*|rtsp|tcp|udp"
    r"|tls|hf|hf[-_]hub|local-dir|s3|gs|gcs|az|abfss?|hdfs|ssh|sftp|smb|git|github|memory|zip|tar)"
    r":\S",
    re.IGNORECASE,
)
_GLOB = re.compile(r"[*?\[{]")


def check_code(spec: Any, where: str, allow: Sequence[str], how: str = "") -> None:
    """Raise ConfigError if a component of somebody else's config, or anything that holds some,
    names what is not allowed; nothing outside is imported.

    A path is judged by what it leads to: what an allowed module merely imported is not allowed.
    `how`: what a user who trusts it may do.
    """
    if isinstance(spec, BaseModel):
        spec = spec.model_dump()
    for keys, nested in [((), spec), *inside(spec, ())]:
        if not isinstance(nested, Mapping) or TARGET not in nested:
            continue
        try:
            wrong = _refusal(nested, allow)
            if wrong is None and how:
                wrong = _reference(nested)
        except ConfigError as error:
            raise ConfigError(Mistake((*keys, TARGET), str(error)).within(where)) from error
        if wrong is not None:
            trusted = how or f"add --allow {target_of(nested)}: it is then built"
            message = (
                f"{wrong.message}. A checkpoint may name {', '.join((*OWN, *LIBRARIES))}, their "
                "classes and builders of networks, without arguments that load anything from "
                f"elsewhere. If you trust this one, {trusted}."
            )
            raise ConfigError(Mistake((*keys, *wrong.keys), message).within(where))


def check_files(spec: Mapping[str, Any], where: str, allow: Sequence[str]) -> None:
    """Raise ConfigError if a source of somebody else's config names files that are neither in the
    working directory, hidden ones aside, nor in a directory of `allow`.
    """
    if _is_under(str(spec.get(TARGET)).replace(":", "."), allow):
        return
    roots = [Path(one).expanduser().resolve() for one in allow if is_directory(one)]
    here = Path.cwd().resolve()
    for keys, text in _leaves(spec, through=True):
        found = _named_file(text) if keys[-1] != TARGET else None
        if found is None or any(found.is_relative_to(root) for root in roots):
            continue
        names = found.relative_to(here).parts if found.is_relative_to(here) else (".",)
        if here == Path(here.anchor) or any(name.startswith(".") for name in names):
            folder = found if found.is_dir() else found.parent
            raise ConfigError(
                Mistake(
                    keys,
                    f"{short_repr(text)} is outside the working directory, and a checkpoint must "
                    f"not name files there. If you want them read, add --allow {folder}/.",
                ).within(where)
            )


def _named_file(text: Any) -> Path | None:
    """The file or directory that an argument leads to, links resolved; for a pattern or a missing
    file, the directory. None if it is not a path, or nothing there can be read.
    """
    if not isinstance(text, str) or not text:
        return None
    try:
        path = Path(_GLOB.split(text, maxsplit=1)[0]).expanduser()
        if "/" not in text and not text.startswith("~") and not path.is_symlink():
            return None
        if path.exists():
            return path.resolve()
        above = path.parent.resolve()
        return above if above.exists() and above != Path(above.anchor) else None
    except (OSError, RuntimeError, ValueError):
        return None


def is_directory(allowed: str) -> bool:
    """Whether what a user allows is a directory of files, not a prefix of dotted paths."""
    return "/" in allowed


def _refusal(spec: Mapping[str, Any], allow: Sequence[str]) -> Mistake | None:
    """Why somebody else's config may not name this component, with the keys of what is wrong."""
    path = target_of(spec)
    if _is_under(path, allow) or path == TAKE:  # which gives what this process has been given
        return None
    if _is_under(path, (MAIN,)):
        if (change := find_change(spec)) is not None:
            raise ConfigError(f"{change}.")
        return None
    if not _is_under(path, (*OWN, *LIBRARIES)):
        return Mistake((TARGET,), f"{path} is code from elsewhere")
    if _is_under(path, _REACHES_OUT):
        return Mistake((TARGET,), f"{path} may fetch data from elsewhere, and read pickles")
    wrong = _argument(spec, path)
    if wrong is None:
        reason = _leads_elsewhere(spec, path, allow) or _no_kind(walk(spec[TARGET])[-1])
        wrong = Mistake((TARGET,), f"{path} {reason}") if reason else None
    return wrong


def _reference(spec: Mapping[str, Any]) -> Mistake | None:
    """An argument in somebody else's config that would be looked up in the environment."""
    for keys, value in _leaves(dict(spec), through=True):
        if isinstance(value, Reference):
            return Mistake(keys, f"{value} would be looked up in your environment")
    return None


def _leads_elsewhere(spec: Mapping[str, Any], path: str, allow: Sequence[str]) -> str:
    names = path.split(".")
    for index, met in enumerate(walk(spec[TARGET])):
        home = met.__name__ if isinstance(met, ModuleType) else getattr(met, "__module__", None)
        known = (*OWN, *LIBRARIES)
        if _is_under(".".join(names[: index + 1]), known) and not _is_under(
            str(home), (*known, *allow)
        ):
            return f"leads to code from elsewhere ({home})"
    return ""


def _no_kind(target: Any) -> str:
    if not inspect.isclass(target):
        defined = getattr(target, "__func__", target)
        name = f"{defined.__module__}.{getattr(defined, '__qualname__', '')}"
        models = getattr(sys.modules.get("torchvision.models._api"), "BUILTIN_MODELS", {})
        known = name in _BUILDERS or any(target is one for one in models.values())
        return "" if known else "is neither a class nor a known builder of networks"
    kinds = {f"{base.__module__}.{base.__qualname__}" for base in target.__mro__}
    if _is_under(target.__module__, OWN) or kinds & _KINDS:
        return ""
    return "is not a network, metric, optimizer, schedule or transformers config"


def _argument(spec: Mapping[str, Any], path: str) -> Mistake | None:
    """What an argument would load; nested components are checked on their own."""
    arguments = {key: one for key, one in spec.items() if key != TARGET}
    for keys, value in _leaves(arguments, through=False):
        names = [key for key in keys if isinstance(key, str)]
        if any(name in _FREE for name in names):
            continue
        if isinstance(value, Reference):
            return Mistake(keys, f"{value} would be looked up in your environment")
        if isinstance(value, str) and _SCHEME.match(value):
            return Mistake(keys, f"{short_repr(value)} is fetched from elsewhere")
        if _is_under(path, OWN):
            continue
        loading = next((name for name in names if _LOADING.fullmatch(name)), None)
        counts = _is_under(path, ("torchmetrics",)) and value in _COUNTING
        size = loading is not None and _SIZES.fullmatch(loading) and type(value) in (int, float)
        if loading is not None and value and not counts and not size:
            return Mistake(keys, f"{path} is asked to load something by {loading}")
        picked = any(_IMPLEMENTATION.fullmatch(name) for name in names)
        if picked and value is not None and value not in _BUILT_IN:
            return Mistake(keys, f"{short_repr(value)} is code that may be fetched from elsewhere")
        if isinstance(value, str) and ("/" in value or "\\" in value):
            return Mistake(
                keys, f"{short_repr(value)} may be loaded, from a file or from elsewhere"
            )
    return None


def _leaves(value: Any, keys: Keys = (), *, through: bool) -> Iterator[tuple[Keys, Any]]:
    """The leaves of a value, with the keys that lead to them; `through`: also those of nested
    components.
    """
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items() if through or TARGET not in value else ()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield keys, value
        return
    for key, item in items:
        yield from _leaves(item, (*keys, key), through=through)


def _is_under(path: str, prefixes: Iterable[str]) -> bool:
    return any(
        path == prefix.rstrip(".") or path.startswith(prefix.rstrip(".") + ".")
        for prefix in prefixes
    )
