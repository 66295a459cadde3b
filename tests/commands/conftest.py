"""One run that many tests look at and make copies of."""

from pathlib import Path

import pytest

from tests.commands.forged import train_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing may be changed in it."""
    return train_digits(tmp_path_factory.mktemp("digits") / "run")
