import shutil

import pytest

from umbel_server.aggregation import passes


@pytest.fixture(scope="session")
def library() -> object:
    """The compiled passes. They may be missing only where there is no compiler: else the installation is broken."""
    if passes.compiled is None:
        assert shutil.which("cc") is None, "there is a C compiler, and the passes were not compiled: make install"
        pytest.skip("Umbel was installed without a C compiler")
    return passes.compiled
