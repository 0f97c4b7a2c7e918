import json
import logging
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
PAGE = SCRIPTS.parent / "docs" / "performance.md"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    level = logging.getLogger("lightning.pytorch").level
    path = list(sys.path)
    yield
    sys.path[:] = path
    logging.getLogger("lightning.pytorch").setLevel(level)


def run(*arguments):
    import benchmark

    return benchmark.main(["--tiny", "--repeats", "2", *arguments])


def check_measured(report):
    for lane in report["lanes_ms"].values():
        assert 0 < lane["wall"]["min"] <= lane["wall"]["median"] <= lane["wall"]["max"]
    assert all(len(compared["values"]) == 2 for compared in report["comparisons"])


@pytest.mark.parametrize(
    ("row", "cases"),
    [
        ("gan_dcgan32", ["gan_dcgan32"]),
        ("gan_mlp", ["gan_mlp"]),
        ("gan_parts", ["gan_parts"]),
        ("ema", ["ema"]),
        ("sqrt_trace", ["sqrt_trace/full rank", "sqrt_trace/rank deficient"]),
        pytest.param("features", ["features"], marks=pytest.mark.slow),
        ("data", ["data/digits 8x8", "data/memory 3x32x32"]),
        pytest.param(
            "shards",
            ["shards/3x32x32", "shards/3x128x128"],
            marks=[  # workers are forked, on machines of any number of cores
                pytest.mark.filterwarnings("ignore:.*worker processes in total.*:UserWarning"),
                pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
            ],
        ),
        ("diffusion_growth", ["diffusion_growth/resolution", "diffusion_growth/batch", "diffusion_growth/steps"]),
        ("diffusion_parts", ["diffusion_parts"]),
        ("diffusion_conv", ["diffusion_conv/8 to 8 channels, 8 px"]),
        ("autoencoder_conv", ["autoencoder_conv"]),
        pytest.param("tiled_decode", ["tiled_decode"], marks=pytest.mark.slow),
        ("iwae_step", ["iwae_step"]),
        pytest.param("iwae_step_compiled", ["iwae_step_compiled"], marks=pytest.mark.slow),
        (
            "diffusion_changes",
            [
                "diffusion_changes/modulations of all blocks",
                "diffusion_changes/queries, keys and values",
                "diffusion_changes/doubling convolution",
                "diffusion_changes/normalization and SiLU",
                "diffusion_changes/AdamW",
            ],
        ),
    ],
)
def test_every_row_runs_and_measures_every_lane_in_every_repeat(row, cases, tmp_path):
    out = tmp_path / "benchmark.json"
    reports = run("--rows", row, "--out", str(out))
    assert [report["name"] for report in reports] == cases
    for report in reports:
        check_measured(report)
    assert [kept["name"] for kept in json.loads(out.read_text())["rows"]] == cases


def test_our_ways_and_the_peers_give_the_same_values():
    full, deficient = run("--rows", "sqrt_trace")
    for fact, value in full["facts"].items():
        assert fact == "samples" or abs(float(value)) < 1e-12
    assert abs(float(deficient["facts"]["relative error, ours"])) < 1e-12
    (ema,) = run("--rows", "ema")
    assert float(ema["facts"]["largest difference from multi_avg_fn"]) < 1e-6


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("diffusion_forward", "outputs"),
        ("diffusion_train", "gradients"),
        ("diffusion_ddim", "after 4 steps"),
    ],
)
def test_the_u_nets_have_the_same_weights_and_say_the_same(row, what):
    pytest.importorskip("diffusers")
    (report,) = run("--rows", row, "--batch", "3")
    check_measured(report)
    facts = report["facts"]
    assert report["what"].endswith("batch 3")
    assert facts["parameters, ours"] == facts["parameters, diffusers"] > 0
    (difference,) = [float(value) for fact, value in facts.items() if "difference" in fact and what in fact]
    assert difference < 1e-5


@pytest.mark.parametrize("row", ["autoencoder_train", "autoencoder_encode"])
def test_the_autoencoders_have_the_same_weights_and_say_the_same(row):
    pytest.importorskip("diffusers")
    (report,) = run("--rows", row, "--batch", "3")
    check_measured(report)
    facts = report["facts"]
    assert "batch" in report["what"]
    assert facts["parameters, ours"] == facts["parameters, diffusers"] > 0
    for what in ("outputs", "gradients"):
        assert float(facts[f"largest difference of the {what}, relative"]) < 1e-4


def test_growth_is_fitted_by_a_power():
    from benchmarks.diffusion_own import exponent

    assert exponent({16: 3.0, 32: 24.0, 64: 192.0}) == pytest.approx(3, abs=1e-12)
    # by hand: log2 of the times 0, 1, 4 at log2 of the sizes 0, 1, 2 have the slope (4 - 0) / 2
    assert exponent({1: 1.0, 2: 2.0, 4: 16.0}) == pytest.approx(2, abs=1e-12)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's")
def test_the_peak_of_a_lane_is_what_it_takes_on_top_of_what_was_there():
    import torch
    from benchmarks.memory import PeakMemory
    from benchmarks.timing import Seconds

    kept = torch.ones(32, 2**20)
    memory = PeakMemory("cpu")

    def lane(mebibytes):
        torch.ones(mebibytes, 2**18).sum()
        return Seconds(0, 0)

    for size in (128, 32):
        memory.watch(str(size), lambda size=size: lane(size))()
    assert kept.sum() == kept.numel()
    # Linux counts a process's pages some dozens at a time
    for size in (128, 32):
        assert memory.peaks[str(size)] / 2**20 == pytest.approx(size, abs=4)
    assert memory.facts()["peak memory above the weights, 32"].endswith(" MiB")


def test_every_goal_of_diffusion_is_of_a_row_that_there_is():
    import benchmark
    from benchmarks.diffusion import GOALS

    assert {row for row, _, _ in GOALS} <= set(benchmark.ROWS)


def test_a_row_for_another_device_is_skipped_and_says_so(capsys):
    (report,) = run("--rows", "gan_dcgan32_bf16")
    assert "GPU" in report["skipped"]
    assert "skipped" in capsys.readouterr().out


def test_an_unknown_row_is_answered_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        run("--rows", "gan_mpl")
    assert "gan_mlp" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["train", "ddim"])
@pytest.mark.parametrize("how", ["_bf16", "_compiled", "_bf16_compiled"])
def test_variants_of_diffusion_ask_for_a_gpu(what, how):
    (report,) = run("--rows", f"diffusion_{what}{how}")
    assert "GPU" in report["skipped"]


def test_comparisons_pair_the_lanes_of_a_repeat():
    from benchmarks.timing import Row, Seconds

    row = Row("r", "call", {"a": [Seconds(1, 9), Seconds(4, 9)], "b": [Seconds(2, 9), Seconds(16, 9)]})
    for kind, values, met in (("slowdown", [0.5, 0.25], True), ("speedup", [2.0, 4.0], True)):
        row.compare("a", "b", kind, goal=1.0)
        assert row.comparisons[-1].values == values
        assert row.comparisons[-1].met is met
    row.compare("b", "a", "extra", goal=0.6)
    assert row.comparisons[-1].values == [1000.0, 12000.0]
    assert row.comparisons[-1].met is False


def test_tables_are_written_between_their_markers_and_nowhere_else(tmp_path):
    import performance_table

    reports = run("--rows", "data,gan_dcgan32_bf16", "--out", str(tmp_path / "b.json"))
    page = "before\n<!-- table:data -->\nold\n<!-- end -->\nbetween\n<!-- table:ema -->\n<!-- end -->\nafter\n"
    once = performance_table.rendered(page, reports)
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert once.count("`data/") == 2
    assert "Not yet run." in once
    assert performance_table.rendered(once, reports) == once


def test_the_page_has_a_table_for_every_row():
    import benchmark

    page = PAGE.read_text(encoding="utf-8")
    for row in benchmark.ROWS:
        assert f"<!-- table:{row} -->" in page
