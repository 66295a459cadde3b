"""What can be wrong with data that a training would not show: leaks between splits, broken numbers,
classes that make an accuracy a lie.

A launch of a new run does this on rank 0:

    # Reads samples as the sources give them
    report = check_data(config.data, config.task, config.stop.targets, splits)
    # Prints warnings; raises DataError with all errors at once
    report.enforce(console.say)
"""

from harness.checks.check import check_data
from harness.checks.report import Finding, Report

__all__ = ["Finding", "Report", "check_data"]
