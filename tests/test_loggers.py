"""metrics.csv: kept over resumptions, no row twice, columns that come later."""

import csv

import pytest
import torch

from lightning_gen.loggers import RunCSVLogger


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def write(folder, values, first_step=None, status="success", rows=None):
    logger = RunCSVLogger(folder, first_step, rows=rows)
    for step, metrics in values:
        logger.log_metrics(metrics, step)
    logger.finalize(status)


def test_values_are_written_exactly(tmp_path):
    write(
        tmp_path,
        [(0, {"loss": 0.1 + 0.2, "n": 3, "big": torch.tensor(1e-30, dtype=torch.float64), "nan": float("nan")})],
    )
    (row,) = rows(tmp_path)
    assert row["step"] == "0"
    assert float(row["loss"]) == 0.1 + 0.2
    assert row["n"] == "3"
    assert float(row["big"]) == 1e-30
    assert row["nan"] == "nan"


def test_columns_grow(tmp_path):
    write(tmp_path, [(0, {"a": 1}), (1, {"b": 2}), (2, {"a": 3, "c": 4})])
    assert rows(tmp_path) == [
        {"step": "0", "a": "1", "b": "", "c": ""},
        {"step": "1", "a": "", "b": "2", "c": ""},
        {"step": "2", "a": "3", "b": "", "c": "4"},
    ]


def test_rows_past_the_checkpoint_are_dropped(tmp_path):
    write(tmp_path, [(step, {"loss": step}) for step in range(10)])
    write(tmp_path, [(step, {"loss": step + 100}) for step in range(6, 12)], first_step=6)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        *((str(step), str(step)) for step in range(6)),
        *((str(step), str(step + 100)) for step in range(6, 12)),
    ]


def test_rows_past_the_checkpoint_are_dropped_though_the_next_row_comes_later(tmp_path):
    write(tmp_path, [(step, {"loss": step}) for step in (3, 7, 11, 15)])
    # taken up at 10, the next logged step is 19
    write(tmp_path, [(19, {"loss": 19})], first_step=10)
    assert [row["step"] for row in rows(tmp_path)] == ["3", "7", "19"]


@pytest.mark.parametrize("written", [[], [(4, {"loss": 1})], [(4, {"loss": 1}), (4, {"fid": 9})]])
def test_the_rows_of_the_last_iteration_are_those_of_the_checkpoint(written, tmp_path):
    """Whichever of them were on the disk when the run was killed: its checkpoint was made before, or behind them."""
    write(tmp_path, [(3, {"loss": 0}), *written, (5, {"loss": 70})])
    held = [{"step": 4, "loss": 1.0}, {"step": 4, "fid": 9.5}]
    write(tmp_path, [(5, {"loss": 2}), (6, {"loss": 3})], first_step=5, rows=held)
    assert [(row["step"], row["loss"], row["fid"]) for row in rows(tmp_path)] == [
        ("3", "0", ""),
        ("4", "1", ""),
        ("4", "", "9.5"),
        ("5", "2", ""),
        ("6", "3", ""),
    ]


def test_a_checkpoint_without_rows_leaves_those_of_before_its_step(tmp_path):
    write(tmp_path, [(4, {"loss": 1}), (5, {"loss": 9})])
    write(tmp_path, [(5, {"loss": 2})], first_step=5)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("4", "1"), ("5", "2")]


def test_without_a_step_to_take_up_at_the_first_row_decides(tmp_path):
    write(tmp_path, [(step, {"loss": step}) for step in range(5)])
    write(tmp_path, [(2, {"loss": 20})])
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("0", "0"), ("1", "1"), ("2", "20")]


def test_a_new_run_begins_a_new_table(tmp_path):
    write(tmp_path, [(step, {"loss": step}) for step in range(5)])
    write(tmp_path, [(0, {"loss": 7})], first_step=0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("0", "7")]


def test_columns_are_kept_over_resumptions(tmp_path):
    write(tmp_path, [(0, {"loss": 1}), (1, {"fid": 2})])
    write(tmp_path, [(2, {"new": 3})], first_step=2)
    assert rows(tmp_path)[0] == {"step": "0", "loss": "1", "fid": "", "new": ""}
    assert rows(tmp_path)[-1] == {"step": "2", "loss": "", "fid": "", "new": "3"}


def test_a_line_cut_short_is_left_out(tmp_path):
    write(tmp_path, [(step, {"a": step, "b": step}) for step in range(3)])
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("3,0.1")
    write(tmp_path, [(3, {"a": 30, "b": 30})], first_step=3)
    assert [row["a"] for row in rows(tmp_path)] == ["0", "1", "2", "30"]


def test_rows_are_on_the_disk_with_the_checkpoint(tmp_path):
    logger = RunCSVLogger(tmp_path, 0, flush_seconds=1e9)
    logger.log_metrics({"loss": 1}, 0)
    logger.log_metrics({"loss": 2}, 1)
    logger.after_save_checkpoint(None)
    assert len(rows(tmp_path)) == 2
    logger.log_metrics({"loss": 3}, 2)
    logger.finalize("failed")
    assert len(rows(tmp_path)) == 3


def test_two_fits_of_one_logger(tmp_path):
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"loss": 1}, 0)
    logger.finalize("success")
    logger.log_metrics({"loss": 2}, 1)
    logger.finalize("success")
    assert [row["loss"] for row in rows(tmp_path)] == ["1", "2"]


def test_it_names_the_run_folder(tmp_path):
    logger = RunCSVLogger(tmp_path)
    assert logger.save_dir == str(tmp_path)
    assert (logger.name, logger.version) == ("", "")
    logger.log_hyperparams({"a": 1})
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        RunCSVLogger(tmp_path / "file" / "run").log_metrics({"loss": 1}, 0)
