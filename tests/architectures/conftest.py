import pytest

from tests.architectures.fresh_process import FreshProcess


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A process without smd_hf, for all models of a file."""
    process = FreshProcess(tmp_path_factory.mktemp("fresh"))
    yield process
    process.close()
