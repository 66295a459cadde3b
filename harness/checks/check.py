"""All checks of a config's splits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.checks.classes import (
    check_imbalance,
    check_missing,
    class_names,
    count_classes,
    in_order,
)
from harness.checks.drift import Features, check_drift
from harness.checks.leaks import (
    check_conflicts,
    check_duplicates,
    check_groups,
    check_overlaps,
    check_recordings,
    check_time,
    columns_of_rules,
    number_repeated,
)
from harness.checks.near import Prints, check_near
from harness.checks.numbers import check_numbers
from harness.checks.parts import check_parts
from harness.checks.report import Findings, Report, SplitSummary
from harness.checks.roles import Role, Roles, roles_of
from harness.checks.survey import Survey, survey
from harness.data.settings import ChecksConfig, DataConfig, SplitConfig
from harness.data.split import Split
from harness.stopping.targets import Target

SOME = 6  # samples of a class that a report lists


def check_data(
    data: DataConfig,
    task: Mapping[str, Any],
    targets: Mapping[str, Target],
    splits: Mapping[str, Split],
    *,
    thorough: bool = False,
) -> Report:
    """Check the splits' samples as their sources return them, before any treatment; `task` and
    `targets` are the config's sections `task` and `stop.targets`. `thorough`: near-duplicates and
    drift as well, which no launch waits for.

    No collectives. Raises ConfigError and DataError.
    """
    settings, roles = data.checks, roles_of(task)
    specs = {name: getattr(data, name) for name in data.names if name in splits}
    sources = [spec.source for spec in specs.values()]
    given = [(name,) for name in settings.groups]
    rules = [one for kind in ("ByGroup", "ByFold") for one in columns_of_rules(kind, sources)]
    groups = list(dict.fromkeys([*given, *rules]))
    times = [name for (name,) in columns_of_rules("ByTime", sources)]
    if settings.time is not None:
        times = [settings.time]
    asked = [*(name for columns in groups for name in columns), *times]
    findings = Findings(settings)
    prints, features = _observers(settings, roles, specs, splits) if thorough else ({}, {})
    surveys = [
        survey(
            name,
            splits[name].source,
            settings.samples,
            roles,
            spec.treatments,
            asked,
            settings.ranges,
            [of[name] for of in (prints, features) if of],
        )
        for name, spec in specs.items()
    ]
    check_parts(data, findings)
    check_duplicates(surveys, repeated := number_repeated(surveys), findings)
    check_conflicts(surveys, repeated, roles, findings)
    check_groups(surveys, groups, findings)
    if ("recording",) not in groups:
        check_recordings(surveys, findings)
    check_overlaps(surveys, findings)
    for time in times:
        check_time(surveys, time, findings)
    if prints:
        check_near(surveys, list(prints.values()), repeated, findings)
    if features:
        check_drift(surveys, list(features.values()), roles, groups, findings)
    for one in surveys:
        check_numbers(one, specs[one.split].treatments, findings)
    for role in roles.classes:
        remedied = data.train.balance == role.target or _has_weights(task)
        _check_classes(surveys, role, targets, findings, remedied=remedied)
    return Report(
        findings.sorted(), [_summarise(one, roles, surveys) for one in surveys], findings.notes
    )


def _observers(
    settings: ChecksConfig,
    roles: Roles,
    specs: Mapping[str, SplitConfig],
    splits: Mapping[str, Split],
) -> tuple[dict[str, Prints], dict[str, Features]]:
    """What near-duplicates and drift need of each split's samples; {} for a check that is off."""
    steps: dict[str, Any] = {}
    words = [role.target for role in roles.classes]
    prints = {name: Prints(roles, spec.treatments, steps) for name, spec in specs.items()}
    features = {name: Features(min(settings.samples, len(splits[name])), words) for name in specs}
    return (
        {} if settings.near_duplicates == "off" else prints,
        {} if settings.drift == "off" else features,
    )


def _check_classes(
    surveys: list[Survey],
    role: Role,
    targets: Mapping[str, Target],
    findings: Findings,
    *,
    remedied: bool,
) -> None:
    counts = count_classes(surveys, role)
    if len(counts) < len(surveys):
        findings.notes.append(
            f"classes in {role.target!r} were not checked: samples have none before the "
            "treatments, or several"
        )
        return
    names = class_names(surveys, role)
    check_missing(counts, role, names, findings)
    check_imbalance(counts, role, names, targets, remedied, findings)


def _has_weights(spec: Any) -> bool:
    if isinstance(spec, Mapping):
        return spec.get("class_weights") is not None or any(
            _has_weights(value) for value in spec.values()
        )
    return False


def _summarise(one: Survey, roles: Roles, surveys: list[Survey]) -> SplitSummary:
    """By the first target that is a class; without one all samples form one class."""
    role = roles.classes[0] if roles.classes else None
    labels = None if role is None else one.labels(role.target)
    names = {} if role is None else class_names(surveys, role)
    rows_by_word = {"": np.arange(len(one.rows))} if labels is None else labels.rows_by_word()
    by_name = {names.get(word, word): one.rows[at].tolist() for word, at in rows_by_word.items()}
    rows = {name: by_name[name] for name in sorted(by_name, key=in_order)}
    some = {name: _spread(of, min(SOME, len(of))) for name, of in rows.items()}
    return SplitSummary(
        one.split,
        one.num_samples,
        len(one.rows),
        {name: len(of) for name, of in rows.items()},
        some,
    )


def _spread(rows: list[int], count: int) -> list[int]:
    """`count` of the rows, evenly spread from the first to the last."""
    return [rows[at * (len(rows) - 1) // max(1, count - 1)] for at in range(count)]
