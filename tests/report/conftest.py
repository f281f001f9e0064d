"""The run that the tests of report and notebooks look at."""

import pytest
from made_up_run import made_up_run


@pytest.fixture
def run(tmp_path):
    """A finished run with every method, on local disk."""
    return made_up_run(tmp_path)
