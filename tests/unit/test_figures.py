"""The figures say what the run's files say."""

import json
import math
import struct

import pytest
from matplotlib import rc_context

from dlrun import runs
from dlrun.commands import _drawing as drawing
from dlrun.commands import _figures as figures
from dlrun.commands._figure_confusion import confusion_matrix
from dlrun.commands._figure_gradients import gradients
from dlrun.errors import DlrunError

LOSSES = [(20, 1.5), (40, 0.8), (60, float("nan")), (80, 0.4)]


@pytest.fixture
def run(tmp_path):
    made = runs.create(tmp_path, runs.RunRecord(id="ab" * 16, verb="train", name="swift"))
    (made.folder / "config.yaml").write_text("model: {name: mlp}\ndata: {name: digits}\n")
    return made


def write_metrics(run, **curves):
    lines = [{"step": step, "time_ms": 0, "values": {name.replace("_", "/", 1): value}}
             for name, curve in curves.items() for step, value in curve]  # fmt: skip
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_result(run, **changes):
    goal = {"name": "accuracy", "mode": "max", "value": 0.9, "split": "test"}
    runs.write_json(run.folder / "result.json", {"goal": goal, "metrics": {}, "best_step": 40, **changes})


def points(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


# ---------------------------------------------------------------- all of them


def test_a_run_without_files_has_no_figures(run):
    assert figures.draw(run) == []
    assert not (run.folder / "figures").exists()


def test_every_figure_is_a_png_in_the_figures_folder(run):
    write_metrics(run, train_loss=LOSSES, valid_loss=[(40, 0.9), (80, 0.5)], valid_accuracy=[(40, 0.7), (80, 0.6)])
    write_result(run)
    runs.write_json(run.folder / "confusion.json", {"labels": ["a", "b"], "counts": [[3, 1], [0, 4]]})
    write_gradients(run)
    made = figures.draw(run)
    assert [path.relative_to(run.folder).as_posix() for path in made] == [
        "figures/learning_curve.png", "figures/confusion_matrix.png", "figures/gradients.png"]  # fmt: skip
    assert all(min(png_size(path)) >= 300 for path in made)
    assert figures.draw(run) == made  # drawn again in place


def test_names_with_dollars_or_in_other_scripts_are_drawn(run):
    run = run.update(name="costs $5 or $6\nper day")
    runs.write_json(run.folder / "confusion.json", {"labels": ["$a_{", "日本"], "counts": [[1, 0], [0, 1]]})
    assert len(figures.draw(run)) == 1


def test_a_folder_that_cannot_be_written_is_named(run):
    runs.write_json(run.folder / "confusion.json", {"labels": ["a"], "counts": [[1]]})
    (run.folder / "figures").write_text("a file is in the way")
    with pytest.raises(DlrunError, match=r"figures: cannot be written: File exists"):
        figures.draw(run)


def test_the_heading_names_the_run_or_its_id(run):
    assert drawing.title_of(run) == "swift: mlp on digits"
    assert drawing.title_of(run.update(name="")) == "run abababab: mlp on digits"
    (run.folder / "config.yaml").write_text("model: [")
    assert drawing.title_of(run) == "swift"


# ---------------------------------------------------------------- learning curve


def test_the_learning_curve_shows_the_logged_values_and_marks_the_best_step(run):
    write_metrics(run, train_loss=LOSSES, valid_loss=[(40, 0.9), (80, 0.5)], valid_accuracy=[(40, 0.7), (80, 0.6)])
    write_result(run)
    above, below = figures.learning_curve(run).axes
    train, valid, _ = above.lines
    assert points(train) == [(20, 1.5), (40, 0.8), (80, 0.4)]  # what is not finite cannot be drawn
    assert points(valid) == [(40, 0.9), (80, 0.5)]
    goal, line, best = below.lines
    assert points(goal) == [(40, 0.7), (80, 0.6)]
    assert points(best) == [(40, 0.7)]
    assert list(line.get_xdata()) == [40, 40]
    assert [text.get_text() for text in below.texts] == ["best 0.7 at step 40"]
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["train loss", "valid loss"]
    assert below.get_ylabel() == "accuracy"


def test_a_run_judged_by_its_loss_has_one_panel(run):
    write_metrics(run, train_loss=LOSSES, valid_loss=[(40, 0.5), (80, 0.6)])
    write_result(run, goal={"name": "loss", "mode": "min", "value": 0.5, "split": "valid"})
    [axis] = figures.learning_curve(run).axes
    assert [text.get_text() for text in axis.texts] == ["best 0.5 at step 40"]


def test_an_interrupted_run_is_drawn_without_its_result(run):
    write_metrics(run, train_loss=LOSSES, valid_accuracy=[(40, 0.7)])
    above, below = figures.learning_curve(run).axes
    assert points(below.lines[0]) == [(40, 0.7)]
    assert [*above.texts, *below.texts] == []


def test_the_one_row_of_an_evaluation_is_no_curve(run):
    write_metrics(run, valid_loss=[(80, 0.5)], valid_accuracy=[(80, 0.7)])
    write_result(run)
    assert figures.learning_curve(run) is None


def test_losses_over_a_wide_range_get_a_logarithmic_axis(run):
    write_metrics(run, train_loss=[(1, 2.0), (2, 0.07)])
    assert figures.learning_curve(run).axes[0].get_yscale() == "linear"
    write_metrics(run, train_loss=[(1, 2.0), (2, 0.06)])
    assert figures.learning_curve(run).axes[0].get_yscale() == "log"


def test_a_long_curve_is_smoothed_over_a_faint_copy_of_itself(run):
    write_metrics(run, train_loss=[(step, 1.0 + step % 2) for step in range(1, 201)])
    raw, smooth = figures.learning_curve(run).axes[0].lines
    assert raw.get_alpha() < 0.5
    assert points(raw)[:2] == [(1, 2.0), (2, 1.0)]
    assert max(smooth.get_ydata()[10:-10]) - min(smooth.get_ydata()[10:-10]) < 0.2


def test_a_running_mean_uses_fewer_neighbours_near_the_ends():
    assert figures.running_mean([1.0, 2.0, 6.0, 4.0], 1) == [1.0, 3.0, 4.0, 4.0]
    assert figures.running_mean([1.0, 2.0, 6.0, 4.0, 0.0], 5) == [1.0, 3.0, 13 / 5, 10 / 3, 0.0]
    assert figures.running_mean([5.0], 3) == [5.0]
    assert figures.running_mean([1.0, 2.0], 0) == [1.0, 2.0]


# ---------------------------------------------------------------- confusion matrix


def test_the_confusion_matrix_colours_shares_and_writes_counts(run):
    runs.write_json(
        run.folder / "confusion.json", {"labels": ["cat", "dog", "owl"], "counts": [[8, 2, 0], [0, 5, 0], [0, 0, 0]]}
    )
    axis, _ = confusion_matrix(run).axes
    assert axis.images[0].get_array().tolist() == [[0.8, 0.2, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    said = {tuple(text.get_position()): text.get_text() for text in axis.texts if len(text.get_text()) == 1}
    assert said == {(0, 0): "8", (1, 0): "2", (1, 1): "5"}  # (predicted, true); empty cells say nothing
    assert "13 of 15 right (86.7%)" in [text.get_text() for text in axis.texts]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog", "owl"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")


def test_many_classes_have_colours_but_no_counts_and_not_every_name(run):
    labels = [f"class {index}" for index in range(100)]
    counts = [[int(row == column) for column in range(100)] for row in range(100)]
    runs.write_json(run.folder / "confusion.json", {"labels": labels, "counts": counts})
    axis, _ = confusion_matrix(run).axes
    assert [text.get_text() for text in axis.texts] == ["100 of 100 right (100.0%)"]
    assert [label.get_text() for label in axis.get_yticklabels()][:3] == ["class 0", "class 4", "class 8"]


def test_a_long_name_of_a_class_is_shortened():
    assert drawing.shortened("a very long name of a class") == "a very long nam…"
    assert drawing.shortened("short") == "short"


# ---------------------------------------------------------------- gradients


def write_gradients(run, norms=(1e-9, 1e-3, 0.3), dead=(0.1, 0.7, math.nan), verdict="vanishing"):
    layers = {f"layer{i}": {"gradient_norm": norm, "relative_gradient": 1.0, "activation_std": 1.0, "dead_share": share}
              for i, (norm, share) in enumerate(zip(norms, dead, strict=True))}  # fmt: skip
    (run.folder / "report").mkdir(exist_ok=True)
    report = {"verdict": verdict, "reason": "the first layer learns nothing", "cure": [], "layers": layers}
    runs.write_json(run.folder / "report" / "gradients.json", report)


def test_gradients_are_on_a_logarithmic_axis_with_the_verdict_in_the_title(run):
    write_gradients(run)
    with rc_context(drawing.STYLE):
        norms, dead = gradients(run).axes
    assert norms.get_xscale() == "log"
    assert norms.get_title(loc="left") == "swift: mlp on digits, vanishing"
    assert norms.texts[0].get_text() == "the first layer learns nothing"
    places = [line for line in norms.lines if line.get_marker() != "None"]
    assert [points(line)[0] for line in places] == [(1e-9, 0), (1e-3, 1), (0.3, 2)]
    assert norms.get_xlim()[0] < 1e-9 and norms.get_xlim()[1] > 0.3
    assert [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in dead.patches] == [(0, 0.1), (1, 0.7)]
    few, many = dead.patches
    assert few.get_facecolor() != many.get_facecolor()
    assert [label.get_text() for label in norms.get_yticklabels()] == ["layer0", "layer1", "layer2"]
    assert norms.yaxis_inverted()  # the first layer is on top


def test_gradients_that_are_zero_or_not_finite_are_crosses_at_the_border(run):
    write_gradients(run, norms=(0.0, math.inf, 0.3))
    norms, _ = gradients(run).axes
    crosses = [points(line)[0] for line in norms.lines if line.get_marker() == "X"]
    assert crosses == [(norms.get_xlim()[0], 0), (norms.get_xlim()[1], 1)]
    assert len(figures.draw(run)) == 1


def test_a_report_without_layers_is_not_drawn(run):
    (run.folder / "report").mkdir()
    runs.write_json(
        run.folder / "report" / "gradients.json", {"verdict": "unknown", "reason": "", "cure": [], "layers": {}}
    )
    assert gradients(run) is None
