"""New rows for a run on text: lines of a file, tables, requests; and the vocabulary a run takes over from another."""

from types import SimpleNamespace

import pytest

from dlrun import assembly, runs, serving
from dlrun.commands._rows import examples
from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError

SPEC = DataSpec(("tokens", "lengths"), "label", {}, {}, (), {"kind": "text", "columns": ["sentence"]})
CHAT = DataSpec(("tokens",), "targets", {}, {}, (), {"kind": "text", "columns": ["prompt"], "instead": ["messages"]})


def rows(path, spec: DataSpec = SPEC) -> list:
    return [(example.number, example.row) for example in examples([path], spec)]


def test_every_line_of_a_text_file_is_an_example(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefffirst\r\n\nthird näh\n".encode())
    assert rows(path) == [(0, {"sentence": "first"}), (2, {"sentence": "third näh"})]


def test_a_line_that_is_no_utf8_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\nsec\xffond\n")
    with pytest.raises(DlrunError, match=r"a.txt, row 1: is not UTF-8"):
        rows(path)
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(DlrunError, match=r"b.txt has no lines"):
        rows(tmp_path / "b.txt")


def test_a_table_needs_the_runs_column_or_one_that_may_stand_for_it(tmp_path):
    (tmp_path / "a.csv").write_text("sentense\nhi\n")
    with pytest.raises(DlrunError, match="has no column 'sentence'") as caught:
        rows(tmp_path / "a.csv")
    assert caught.value.hint == "did you mean sentense?"
    (tmp_path / "a.jsonl").write_text('{"messages": []}\n')
    assert rows(tmp_path / "a.jsonl", CHAT) == [(0, {"messages": []})]


def test_two_texts_a_row_are_not_read_from_lines(tmp_path):
    (tmp_path / "a.txt").write_text("hi\n")
    spec = DataSpec(("tokens", "lengths"), "label", {}, {}, (), {"kind": "text", "columns": ["one", "two"]})
    with pytest.raises(DlrunError, match="is not a table"):
        rows(tmp_path / "a.txt", spec)


def test_a_request_of_text_is_text():
    assert serving.columns(SPEC) == ["sentence"]
    assert serving.safe_rows(SPEC, {"sentence": ["hi", "a/path.png"]}) == [
        {"sentence": "hi"},
        {"sentence": "a/path.png"},
    ]
    with pytest.raises(DlrunError, match=r"row 0, 'sentence': 3 is no text"):
        serving.safe_rows(SPEC, [{"sentence": 3}])


def test_a_run_takes_the_assets_of_the_run_it_goes_on_from_or_starts_from(tmp_path, monkeypatch):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        (folder / "assets").mkdir(parents=True)
    monkeypatch.setattr(runs, "find", lambda _folder, name: SimpleNamespace(folder=tmp_path / name))

    def assets(source, resumed=None):
        return assembly._assets(SimpleNamespace(transfer=SimpleNamespace(source=source)), tmp_path, resumed)  # type: ignore[arg-type]

    assert assets("run:other") == other / "assets"
    assert assets("run:other", own / "checkpoints" / "10") == own / "assets"
    assert assets("some/folder") is assets(None) is assets("run:without") is None
