"""Processing of samples on their way to the network: small objects that take a whole micro-batch
and return one.

    treatment(batch) -> batch                  {name: (B, ...) tensor} on the CPU, in a worker
    treatment(batch, seeds=seeds) -> batch     a random one: seeds (B,) uint64, each a function of
                                               the run's seed, the epoch and the sample

The random draws for a sample are a function of its seed alone, so that they are the same in every
micro-batch, worker and rank and after a resume; the global generators are never used. Evaluations
and predictions skip a treatment with `training_only = True`; one that learns from the training
split also has `observe` and `finish` (learned.py). When the results of a class change, increase
its `version`, so that no store serves the old results.
"""

from harness.treatments.audio import Gain, LogMel, Resample, Shift, SpecMask
from harness.treatments.images import RandomCrop, RandomErase, RandomFlip, Resize
from harness.treatments.learned import Rescale, Standardise
from harness.treatments.numbers import AddNoise, Normalise, ToDegrees, ToFloat
from harness.treatments.series import CropTime, DropChannels, RandomCropTime, RandomScale, Window
from harness.treatments.tables import Encode, Impute, Join, OneHot
from harness.treatments.text import Vocabulary
from harness.treatments.tokens import Pad, Tokenise

__all__ = [
    "AddNoise",
    "CropTime",
    "DropChannels",
    "Encode",
    "Gain",
    "Impute",
    "Join",
    "LogMel",
    "Normalise",
    "OneHot",
    "Pad",
    "RandomCrop",
    "RandomCropTime",
    "RandomErase",
    "RandomFlip",
    "RandomScale",
    "Resample",
    "Rescale",
    "Resize",
    "Shift",
    "SpecMask",
    "Standardise",
    "ToDegrees",
    "ToFloat",
    "Tokenise",
    "Vocabulary",
    "Window",
]
