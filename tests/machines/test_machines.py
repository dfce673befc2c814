"""Four workers on three hosts and one PostgreSQL journal: the short form of `nox -s machines`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machines.network import why_not

ROOT = Path(__file__).parents[2]


@pytest.mark.fault("C31")
@pytest.mark.fault("I1")
@pytest.mark.real_time
@pytest.mark.one_python
@pytest.mark.timeout(400)
@pytest.mark.fault("S14")
@pytest.mark.fault("S15")
def test_workers_on_several_hosts_with_every_fault_once() -> None:
    """Each key is paid once, and both hosts that ordered it get its task."""
    if (reason := why_not()) is not None:
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    short = "--scale=8 --keys=240 --quiet=0.35 --faults=6 --twice=0 --stop=3 --cut=3 --use=0"
    command = ["unshare", "--net", sys.executable, "-m", "tests.machines.play", *short.split()]
    subprocess.run(command, cwd=ROOT, check=True, timeout=380)
