"""Problems of data that a training does not reveal: leaks between splits, invalid numbers, class
imbalance that makes an accuracy meaningless.

A launch of a new run does this on rank 0:

    # Reads samples as sources return them
    report = check_data(config.data, config.task, config.stop.targets, splits)
    # Prints warnings; raises DataError with all errors at once
    report.enforce(console.say)
"""

from harness.checks.check import check_data
from harness.checks.report import Finding, Report

__all__ = ["Finding", "Report", "check_data"]
