"""What is learned: how a batch becomes a loss, metric updates and predictions.

A loss is a sum over *items* and the number of items, so that a batch's gradient is that of the mean
over its items however they are spread over slots and ranks. An ignored target is no item. Losses
are computed in float32 (float64 if the outputs are), under autocast too.

`input` says how a batch goes into the network:

    input: image                        network(batch["image"])
    input: [image, sound]               network({"image": batch["image"], "sound": batch["sound"]})
    input: {input_ids: tokens}          network(input_ids=batch["tokens"])

`harness.networks.Fuse` takes a list of inputs.
"""

from harness.data.source import Learner
from harness.tasks.classification import Classification
from harness.tasks.joint import Joint
from harness.tasks.language import LanguageModelling
from harness.tasks.regression import Regression
from harness.tasks.supervised import Supervised
from harness.tasks.task import Task

__all__ = [
    "Classification",
    "Joint",
    "LanguageModelling",
    "Learner",
    "Regression",
    "Supervised",
    "Task",
]
