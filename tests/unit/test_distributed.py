"""How many threads a process takes."""

import pytest
import torch

from dlrun.training.distributed import available_cores, limit_threads


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("asked", "named", "processes", "expected"), [
    (3, "2", 1, 3),  # the config before the environment
    (None, "2", 1, 2),
    (None, "1", 1, 1),
    (None, "4,2", 1, None),  # nested levels are not a number: the cores
    (None, "0", 1, None),
    (None, "", 1, None),
    (None, "7", 10_000, 1),  # set by the launcher of several processes
])  # fmt: skip
def test_threads_are_those_of_the_config_the_environment_or_the_cores(monkeypatch, asked, named, processes, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    wanted = expected or available_cores()
    assert limit_threads(asked, processes) == wanted == torch.get_num_threads()
