"""What the machine has left."""

import psutil
import pytest

from dlrun import machine


def test_free_disk_asks_the_nearest_folder_there_is(tmp_path):
    asked, near = machine.free_disk_bytes(tmp_path / "a" / "b"), machine.free_disk_bytes(tmp_path)
    assert asked == pytest.approx(near, rel=0.1)


def test_free_memory_is_at_most_what_the_machine_has():
    assert 0 < machine.free_memory_bytes() <= psutil.virtual_memory().total
