"""The number of samples of each class, and the accuracy of a constant prediction."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from harness.checks.report import Findings
from harness.checks.roles import Role
from harness.checks.survey import Survey
from harness.data.texts import Texts
from harness.stopping.targets import Target
from harness.wording import some

Counts = Mapping[str, Counter[str]]
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_MANY = 50  # classes


def count_classes(surveys: Sequence[Survey], role: Role) -> Counts:
    """Samples of each class by split, without ignored ones; {} if samples do not have the target
    before the treatments.
    """
    labels = {one.split: one.labels(role.target) for one in surveys}
    counts = {split: of.counts() for split, of in labels.items() if of is not None}
    for of_split in counts.values():
        if role.ignored is not None:
            of_split.pop(role.ignored, None)
    return counts


def class_names(surveys: Sequence[Survey], role: Role) -> dict[str, str]:
    """Class numbers with names, if the source knows both: {"3": "3 (dog)"}."""
    pairs: set[tuple[str, str]] = set()
    for one in surveys:
        labels = one.labels(role.target)
        if labels is not None and role.target in one.known:
            known = Texts.of(one.known[role.target]).take(one.rows)
            count = len(known.words)
            both = np.unique(labels.codes.astype(np.int64) * count + known.codes).tolist()
            pairs |= {(labels.words[at // count], known.words[at % count]) for at in both}
    names = dict(pairs)
    return (
        {number: f"{number} ({name})" for number, name in names.items() if name != number}
        if len(names) == len(pairs)
        else {}
    )


def in_order(name: str) -> tuple[bool, int, str]:
    """A sort key for class names: numbers as numbers, "3 (dog)" as 3."""
    number = name.partition(" ")[0]
    return (False, int(number), name) if number.isdecimal() else (True, 0, name)


def have_fractions(labels: Collection[str]) -> bool:
    """Whether all are numbers, and some no whole ones."""
    numbers = [float(one) for one in labels if _NUMBER.fullmatch(one)]
    return len(numbers) == len(labels) and any(not one.is_integer() for one in numbers)


def _are_measured(counts: Counts) -> bool:
    """Whether there are so many numbers that most are there once or twice, as of measurements."""
    labels = set().union(*counts.values())
    samples = sum(of.total() for of in counts.values())
    return len(labels) > _MANY and samples < 3 * len(labels) and all(map(_NUMBER.fullmatch, labels))


def check_missing(counts: Counts, role: Role, names: Mapping[str, str], findings: Findings) -> None:
    """Classes that a split lacks: one that is missing in training cannot be learned; one that is
    missing in another split is only not measured.
    """
    everywhere = set().union(*counts.values())
    for split, of in counts.items():
        absent = [names.get(label, label) for label in sorted(everywhere - set(of), key=in_order)]
        others = [other for other, has in counts.items() if other != split and set(has) - set(of)]
        message = (
            f"data.{split}: no samples of {len(absent):,} of {len(everywhere):,} classes in "
            f"{role.target!r}: {some(absent)}."
        )
        advice = (
            f"Present in data.{' and data.'.join(others)}. Split by "
            "harness.sources.split.Stratified, or add samples."
        )
        if have_fractions(everywhere) or _are_measured(counts):
            advice = "Numbers to be predicted are no classes: use harness.tasks.Regression."
        findings.add(
            "missing_classes",
            [split],
            f"{message} {advice}",
            len(absent),
            at_most="error" if split == "train" else "warn",
        )


def check_imbalance(
    counts: Counts,
    role: Role,
    names: Mapping[str, str],
    targets: Mapping[str, Target],
    remedied: bool,
    findings: Findings,
) -> None:
    """Classes of very different sizes, unless that is `remedied`, and targets that a constant
    prediction would reach.
    """
    if not counts.get("train"):
        return
    ordered = counts["train"].most_common()
    (largest, most), (smallest, least) = ordered[0], ordered[-1]
    reached = []
    for split, target in _accuracy_targets(targets, role, counts):
        share = counts[split][largest] / max(1, counts[split].total())
        always = f"always predicting class {names.get(largest, largest)} gives {share:.4g}"
        findings.notes.append(f"target {split}/{role.prefix}accuracy at least {target:g}; {always}")
        if share >= target:
            reached.append(findings.notes[-1])
    if reached:
        message = (
            f"{'; '.join(reached)}. Set a higher target, or one for {role.prefix}balanced_accuracy."
        )
        findings.add("imbalance", list(counts), message, len(reached))
    if most > findings.settings.max_imbalance * least and not remedied:
        message = (
            f"data.train: class {names.get(largest, largest)} of {role.target!r} has {most:,} "
            "samples, "
            f"class {names.get(smallest, smallest)} {least:,}: always predicting the former gives "
            f"an accuracy of {most / counts['train'].total():.4g}."
        )
        advice = (
            f"Set data.train.balance: {role.target} or task.class_weights: balanced, and evaluate "
            f"{role.prefix}balanced_accuracy."
        )
        findings.add("imbalance", ["train"], f"{message} {advice}", 1)


def _accuracy_targets(
    targets: Mapping[str, Target], role: Role, counts: Counts
) -> list[tuple[str, float]]:
    """(split, value) of the targets for this head's accuracy; a name without a split means every
    evaluated split.
    """
    name = f"{role.prefix}accuracy"
    wanted = [
        (split, targets[key].at_least)
        for split in ("train", "val")
        for key in (name, f"{split}/{name}")
        if key in targets and split in counts
    ]
    return [(split, value) for split, value in wanted if value is not None]
