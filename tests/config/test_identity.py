"""What may change of a config between launches: nothing in silence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from harness.config.identity import course_changes, identity_changes, idle_changes, once_changes
from harness.config.mistakes import ANY_KEY, known_fields, models_in
from harness.config.read import read_config
from harness.config.schema import Config
from harness.wording import Keys, dotted
from tests.config.test_read import BASE

EXAMPLES = (
    *(True, False, 1, 2, 50, 0.25, 0.5, "other", Path("other"), ("other",), ("code",), (0.0, 1.0)),
    *({"_target_": "tests.toy_parts.Other"}, {"x": "y"}, {"x": (0.0, 1.0)}, ("wandb",)),
    ({"_target_": "tests.toy_parts.Other"},),
)


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text(BASE)
    return read_config(Path("digits.yaml"), [])


def literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [one for inner in get_args(annotation) for one in literals(inner)]


def examples(info: FieldInfo) -> Iterator[Any]:
    """Values that the field takes."""
    kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    for one in (*literals(info.annotation), *EXAMPLES):
        try:
            yield adapter.validate_python(one)
        except ValidationError:
            continue


def changed(model: BaseModel, keys: Keys, info: FieldInfo) -> BaseModel:
    """The same with another value at `keys`, sections that are not there made for it."""
    fields = type(model).model_fields
    name = next(name for name, field in fields.items() if (field.alias or name) == keys[0])
    old = getattr(model, name, None)
    if len(keys) == 1:
        value = next(one for one in examples(info) if one != old and repr(one) != repr(old))
        return model.model_copy(update={name: value})
    kind = fields[name].annotation
    named, listed = keys[1] == ANY_KEY, get_origin(kind) is tuple
    inside = old[0] if listed and old else (old or {}).get("encoder") if named else old
    if not isinstance(inside, BaseModel):
        inside = models_in(kind)[0].model_construct()
    new = changed(inside, keys[2:] if named else keys[1:], info)
    return model.model_copy(update={name: {"encoder": new} if named else (new,) if listed else new})


def test_no_change_of_a_finished_run_is_dropped_in_silence(before: Config) -> None:
    tried = 0
    for keys, info in known_fields(Config).items():
        if models_in(info.annotation) or keys == ("run", "dir"):
            continue
        now = changed(before, keys, info)
        assert isinstance(now, Config)
        key = dotted(keys).replace(ANY_KEY, "encoder")
        refused = identity_changes(before, now)
        told = idle_changes(before, now)
        # The key itself, what is in it now, or a section that is written in short (patience: 3)
        named = [one.partition(": ")[0].partition("[")[0] for one in told]
        said = any(one and (key.startswith(one) or one.startswith(f"{key}.")) for one in named)
        assert refused or said, (key, told)
        assert refused or not any("(it identifies the run)" in one for one in told), told
        tried += 1
    assert tried > 150


def test_each_change_says_why_it_has_no_effect(before: Config) -> None:
    now = read_config(
        Path("digits.yaml"),
        [
            "run.dir=elsewhere",
            "data.num_workers=2",
            "data.test={source: {_target_: tests.toy_parts.Source}}",
            "stop.budget.epochs=1",
            "tracking.wandb={project: x}",
            "run.init_from=other.safetensors",
        ],
    )
    told = "\n".join(idle_changes(before, now))
    assert "data.num_workers: 'auto' -> 2 (no more samples are read)" in told
    assert "data.test.source._target_: absent -> 'tests.toy_parts.Source' (no training" in told
    assert "tracking.wandb.project: absent -> 'x' (nothing more is recorded)" in told
    # A section that is new is told by what is in it
    assert "absent -> None" not in told
    assert "None -> absent" not in told
    assert "data.test: " not in told
    assert "(judged by it, the run has ended all the same)" in told
    assert "run.dir" not in told
    once = ["run.init_from: None -> 'other.safetensors' (weights are read when a run begins)"]
    assert once_changes(before, now) == once
    assert not any("init_from" in one for one in course_changes(before, now))
