"""What a sweep's workers are given: which GPUs."""

from dlrun.commands import _sweep_workers
from dlrun.commands._sweep_workers import Workers
from dlrun.registry import Registry


def test_the_gpus_that_the_user_lists_are_divided_among_the_workers(tmp_path, monkeypatch):
    given: list[str | None] = []

    class Stub:
        def __init__(self, command, log, environment) -> None:
            given.append(environment.get("CUDA_VISIBLE_DEVICES"))

        def hear(self) -> list[str]:
            return []

    def visible(listed: str | None, workers: int, gpus: int, processes: int = 1) -> list[str | None]:
        given.clear()
        if listed is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        Workers(workers, Registry(), tmp_path, gpus, {"processes": processes})
        return list(given)

    monkeypatch.setattr(_sweep_workers, "LocalProcess", Stub)
    assert visible(None, workers=3, gpus=2) == ["0", "1", "0"]
    assert visible("2,3", workers=2, gpus=4) == ["2", "3"]
    assert visible("GPU-a,GPU-b,GPU-c,GPU-d", workers=2, gpus=8, processes=2) == ["GPU-a,GPU-b", "GPU-c,GPU-d"]
    assert visible("", workers=2, gpus=4) == ["", ""]
    assert visible(None, workers=2, gpus=0) == [None, None]
