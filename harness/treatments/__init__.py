"""What is done to samples on their way to the network: small objects that take a whole micro-batch
and give one.

    treatment(batch) -> batch                  {name: (B, ...) tensor} on the CPU, in a worker
    treatment(batch, seeds=seeds) -> batch     one that draws: seeds (B,) uint64, each a function of
                                               the run's seed, the epoch and the sample

What is drawn for a sample is a function of its own seed alone, so that it is the same in every
micro-batch, worker and rank and after a resume; the ambient generators are never used. A treatment
with `training_only = True` is left out of evaluations and predictions; one that learns from the
training split has `observe` and `finish` too (learned.py). A class whose result changes has its
`version` raised: no store then serves the old one.
"""

from harness.treatments.audio import Gain, LogMel, Resample, Shift, SpecMask
from harness.treatments.images import RandomCrop, RandomErase, RandomFlip, Resize
from harness.treatments.learned import Rescale, Standardise
from harness.treatments.numbers import AddNoise, Normalise, ToDegrees, ToFloat
from harness.treatments.series import CropTime, DropChannels, RandomCropTime, RandomScale, Window
from harness.treatments.tables import Encode, Impute, Join, OneHot
from harness.treatments.text import Vocabulary

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
    "Vocabulary",
    "Window",
]
