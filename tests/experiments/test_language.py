"""A run on text from the command line: bits per byte in the records, the report, the tables."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from rich.console import Console

from experiments import compare, data, evaluate, leak, noise, sample, train, trained
from experiments.build import Run, build
from experiments.config import ConfigError
from experiments.config_files import load_run
from experiments.task import Task, TextUnits
from jdeq.data.vocabulary import Bytes
from jdeq.training import read_metrics

pytestmark = pytest.mark.compiles

SMALL = (
    "--model.length 16 --model.width 8 --model.heads 2 --data.length 16 --data.batch-size 2 "
    "--data.test-windows 4 --loop.steps 4 --loop.test-every 2 --loop.spectrum-every 4 "
    "--loop.spectrum-examples 1 --loop.budgets 4 --loop.rtols 0.1 --optimizer.warmup-steps 1 "
    "--solver.max-steps 2"
).split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "text"
    assert train.main(["stdlib_revdeq_lm", "--workdir", str(workdir), *SMALL]) == 0
    return workdir


@pytest.mark.xdist_group("language")
def test_bits_per_byte_are_the_loss_in_base_two(finished, capsys):
    report = json.loads((finished / "report.json").read_text())
    budget, tolerance = report["test"]
    for row in (budget, tolerance):
        assert row["bits_per_byte"] == pytest.approx(row["loss_nats"] / math.log(2))
    assert 6 < budget["bits_per_byte"] < 9  # all but untrained: 8 bits
    assert budget["nfe_forward"] == 4
    assert "| stop | bits per byte | accuracy |" in (finished / "report.md").read_text()
    tested = [r for r in read_metrics(finished / "metrics.jsonl") if r["kind"] == "test"]
    assert [r["step"] for r in tested] == [2, 4] and all("bits_per_byte" in r for r in tested)
    assert evaluate.main(["--workdir", str(finished), "--budgets", "4", "--rtols"]) == 0
    assert f"{budget['bits_per_byte']:.3f}" in capsys.readouterr().out


@pytest.mark.xdist_group("language")
def test_throughput_counts_tokens(finished):
    records = read_metrics(finished / "metrics.jsonl")
    for record in (r for r in records if r["kind"] == "train"):
        assert record["tokens_per_second"] == pytest.approx(2 * 16 / record["step_seconds"])


@pytest.mark.xdist_group("language")
def test_compare_refuses_runs_on_other_data(finished, tmp_path, capsys):
    def show(*workdirs):
        compare.run(compare.Arguments(workdirs=workdirs))

    show(finished)
    out = capsys.readouterr().out
    assert "bits per byte, mean" in out and "+-" not in out.split("|---")[1]
    other = shutil.copytree(finished, tmp_path / "other")
    report = json.loads((other / "report.json").read_text())
    (other / "report.json").write_text(json.dumps(report | {"data": "0123456789ab"}))
    with pytest.raises(ConfigError, match="workdirs must hold runs on the same data; got 2: "):
        show(finished, other)
    with pytest.raises(ConfigError, match="workdirs must differ; got .* more than once"):
        show(finished, finished)


@pytest.mark.xdist_group("language")
def test_another_text_is_not_taken_for_the_same(finished, tmp_path, monkeypatch, capsys):
    """The standard library of another Python: evaluated with a warning, not trained on."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "report.json").unlink()
    whole = data.load_stdlib
    monkeypatch.setattr(
        data, "load_stdlib", lambda **how: whole(**how)._replace(test=whole(**how).test[1:])
    )
    assert evaluate.main(["--workdir", str(copy), "--budgets", "4", "--rtols"]) == 0
    assert "warning: trained on other data" in capsys.readouterr().out
    assert train.main(["stdlib_revdeq_lm", "--workdir", str(copy), *SMALL]) == 2
    assert "was trained on other data" in capsys.readouterr().err


@pytest.mark.xdist_group("language")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budgets", "4", "3"], "budgets must be multiples of 2"),
        (["--budgets", "--rtols"], "budgets and rtols must not both be empty"),
    ],
)
def test_stops_that_cannot_be_are_refused(finished, options, message, capsys):
    assert evaluate.main(["--workdir", str(finished), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.xdist_group("language")
def test_sliding_windows_score_the_same_text_with_more_context(finished, capsys):
    argv = ["--workdir", str(finished), "--budgets", "4", "--rtols", "--test-stride", "4"]
    assert evaluate.main([*argv, "--test-windows", "6"]) == 0
    assert "6 test examples" in capsys.readouterr().out
    assert evaluate.main([*argv[:-1], "17"]) == 2
    assert "stride must be in 1..16; got 17" in capsys.readouterr().err


@pytest.fixture(scope="module")
def with_memory(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "memory"
    argv = (
        "--model.width 8 --model.heads 2 --model.hidden 8 --model.memory 4 --data.length 4 "
        "--data.batch-size 2 --data.test-windows 2 --data.test-length 12 --loop.steps 3 "
        "--pretrain.steps 1 --loop.test-every 2 --loop.spectrum-every 3 "
        "--loop.spectrum-examples 1 --loop.budgets 2 --loop.rtols 0.1 --optimizer.warmup-steps 1 "
        "--solver.max-steps 2 --gradient.max-steps 2"
    ).split()
    assert train.main(["stdlib_deq_jr", "--workdir", str(workdir), *argv]) == 0
    return workdir


@pytest.mark.slow
@pytest.mark.xdist_group("memory_run")
def test_a_model_with_a_memory_is_tested_on_long_windows(with_memory, capsys):
    def bits(*options):
        argv = ["--workdir", str(with_memory), "--budgets", "2", "--rtols", *options]
        assert evaluate.main(argv) == 0
        return next(row for row in capsys.readouterr().out.splitlines() if "after 2" in row)

    (row,) = (
        r for r in json.loads((with_memory / "report.json").read_text())["test"] if "budget" in r
    )
    assert f"{row['bits_per_byte']:.3f}" in bits()
    assert bits("--test-length", "4", "--test-windows", "6") != bits()
    argv = ["--workdir", str(with_memory), "--test-length", "6"]
    assert evaluate.main(argv) == 2
    assert "data.test_length must be a multiple of data.length (4)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.xdist_group("memory_run")
def test_sampling_prints_the_prompt_and_a_text_of_the_seed(with_memory, capsys):
    def text(*options):
        argv = ["--workdir", str(with_memory), "--prompt", "ab", "--steps", "5", *options]
        assert sample.main(argv) == 0
        return capsys.readouterr().out

    first = text()
    assert first.startswith("ab") and first.endswith("\n") and first == text()
    greedy = ("--temperature", "0", "--rtol", "1e-5", "--max-steps", "100")
    assert text(*greedy) == text(*greedy, "--no-cached") == text(*greedy, "--seed", "1")


@pytest.mark.slow
@pytest.mark.xdist_group("memory_run")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", ""], "prompt must have at least one token; got ''"),
        (["--prompt", "a", "--stop", "ab"], "stop must be one token; got 2: 'ab'"),
        (["--prompt", "a", "--steps", "0"], "steps must be >= 1; got 0"),
        (["--prompt", "a", "--top-p", "2"], "top_p must lie in (0, 1]; got 2.0"),
    ],
)
def test_samples_that_cannot_be_are_refused(with_memory, options, message, capsys):
    assert sample.main(["--workdir", str(with_memory), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.xdist_group("memory_run")
def test_the_leak_is_shown_beside_the_causal_solve(with_memory, capsys):
    argv = ["--workdir", str(with_memory), "--budgets", "3", "--rtols", "--windows", "2"]
    assert leak.main(argv) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| causal", "| whole sequence"]
    causal, whole = (float(row[-1].removesuffix(" |")) for row in rows)
    assert causal == 0 and whole > 0
    assert not (with_memory / "leak.json").exists()  # of stops that were chosen
    assert leak.main(["--workdir", str(with_memory)]) == 0
    kept = json.loads((with_memory / "leak.json").read_text())["rows"]
    assert len({row["stop"] for row in kept}) == len(kept) / 2 > 1
    assert max(row["leak_max"] for row in kept if row["causal"]) == 0
    assert leak.main(["--workdir", str(with_memory), "--budgets", "--rtols"]) == 2


@pytest.mark.slow
@pytest.mark.xdist_group("memory_run")
def test_looser_adjoint_solves_take_less_and_are_further_off(with_memory, capsys):
    argv = ["--workdir", str(with_memory)]
    assert noise.main([*argv, "--batches", "3", "--rtols", "1e-3", "0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    tight, loose = ([float(cell) for cell in line.strip("|").split("|")] for line in lines[2:4])
    assert (tight[0], loose[0]) == (1e-3, 0.3)
    assert tight[1] > loose[1] and tight[2] < 1e-2 < loose[2]
    loaded, restored = trained.load(with_memory, Console(stderr=True))
    arguments = noise.Arguments(workdir=with_memory, batches=3)
    exact, found = (
        noise.gradients(loaded, restored.state, rtol, arguments)[0] for rtol in (1e-6, 0.3)
    )
    deviation = np.sqrt(np.sum((exact - exact.mean(0)) ** 2) / 2)  # of one of the three
    off = np.median(np.linalg.norm(found - exact, axis=1))
    assert loose[4] == pytest.approx(off / deviation, abs=1e-3)
    for wrong, message in (
        ("--batches 1", "batches must be >= 2"),
        ("--rtols 2", "rtols must lie"),
    ):
        assert noise.main([*argv, *wrong.split()]) == 2
        assert message in capsys.readouterr().err


def test_a_character_is_shown_when_it_is_whole(capsys):
    codec = Bytes()
    sample._stream(codec.decode, codec.encode("a"), iter([*codec.encode("é!"), 0xC3]))
    assert capsys.readouterr().out == "é!\N{REPLACEMENT CHARACTER}"


def test_budgets_vary_by_the_jitter_and_no_further(tmp_path, monkeypatch, capsys):
    config = load_run("stdlib_deq_jr")
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, budget_jitter=2))
    budgets = []
    monkeypatch.setattr(Run, "train_step", lambda self, model: budgets.append(model.max_steps))
    train.make_loop(build(config))
    assert budgets == [10, 11, 12, 13, 14, 2]  # the last is the pre-training's
    argv = ["stdlib_deq_jr", "--workdir", str(tmp_path / "run"), "--loop.budget-jitter", "12"]
    assert train.main(argv) == 2
    assert "loop.budget_jitter must be < solver.max_steps (12)" in capsys.readouterr().err


def test_a_memory_needs_rows_that_go_on(tmp_path, capsys):
    argv = ["stdlib_deq_jr", "--workdir", str(tmp_path / "run"), "--data.no-contiguous"]
    assert train.main(argv) == 2
    assert "data.contiguous must be True for a model with a memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.vocab-size", "100"], "model.vocab_size must be 256, that of the data; got 100"),
        (["--data.length", "0"], "length must be >= 1; got 0"),
        (["--model.length", "64"], "tokens must have at most config.length=64 a row; got 128"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train.main(["stdlib_revdeq_lm", "--workdir", str(workdir), *options]) == 2
    assert message in capsys.readouterr().err
    assert not workdir.exists()


def test_measures_say_what_they_are_per():
    """By hand: 2 nats a token, 4 bytes and 0.8 words in it."""

    def measures(unit, words):
        task = Task(batches=None, test=None, classes=9, data="", text=TextUnits(unit, 4.0, words))
        return task.measures({"loss_nats": 2.0})

    bits = 2 / 0.6931472 / 4
    assert measures("byte", 0.1) == pytest.approx({"loss_nats": 2.0, "bits_per_byte": bits})
    assert measures("word", 1.0) == pytest.approx({"loss_nats": 2.0, "word_perplexity": 7.3890561})
    assert measures("subword", 0.8) == pytest.approx(
        {
            "loss_nats": 2.0,
            "bits_per_byte": bits,
            "word_perplexity": 12.1824940,
            "subword_perplexity": 7.3890561,
        }
    )
