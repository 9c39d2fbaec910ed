"""Runs whose data cannot be downloaded here: built, and trained for a step, on stand-ins."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tokenizers

from experiments import train
from experiments.build import build
from experiments.config import OptimizerConfig
from experiments.config_files import load_run, run_names
from experiments.models import EXPLICIT

pytestmark = pytest.mark.compiles


@pytest.fixture
def stand_in(prepared, tmp_path):
    """``stand_in(config)``: the same run on data that is here."""

    def replace(config):
        if hasattr(config.data, "data_dir"):
            names = {"ImageNetData": "imagenet2012", "CityscapesData": "cityscapes"}
            name = names.get(type(config.data).__name__) or config.data.name
            return data(config, data_dir=str(prepared(name)))
        if not hasattr(config.data, "directory"):
            return config
        for split in ("train", "valid", "test"):
            lines = (f"the {i} th line of the {split} text <unk> . \n" for i in range(2000))
            (tmp_path / f"wiki.{split}.raw").write_text("".join(lines))
        if config.data.tokenizer is None:
            return data(config, directory=str(tmp_path))
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
        made.train([str(tmp_path / "wiki.train.raw")], trainer)
        made.save(str(tmp_path / "tokenizer.json"))
        return data(config, directory=str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json"))

    return replace


def data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


NAMES = [
    name
    for name in run_names()
    if hasattr(load_run(name).data, "data_dir") or hasattr(load_run(name).data, "directory")
]
SMALLER = {  # of the data, for a step on a CPU
    "ImageNetData": {"side": 64},
    "CityscapesData": {"height": 64, "width": 64},
}
COUNTS = {  # by the published code, or by every implementation
    "cifar10_densenet121": 6_956_298,
    "cifar10_mdeq": 11_097_438,
    "cifar10_mdeq_jr": 11_097_438,
    "cifar10_mdeq_tiny": 158_890,
    "cifar10_resnet101": 42_512_970,
    "cifar10_resnet18": 11_173_962,
    "cityscapes_mdeq_large": 55_955_859,
    "cityscapes_mdeq_small": 8_968_467,
    "imagenet_mdeq_large": 67_063_624,
    "imagenet_mdeq_large_jr": 67_061_224,
    "imagenet_mdeq_small": 16_808_936,
    "imagenet_mdeq_small_jr": 18_613_496,
    "imagenet_resnet101": 44_549_160,
    # By hand: two tables, the positions, the block's kernels; its biases and all norms.
    "wikitext103_revdeq": 2 * 50_304 * 768 + 448 * 768 + 12 * 768**2 + 15 * 768,
}
PRINTED = {  # in the papers, rounded: to two digits those of the language models
    "ptb_trellis": 24e6,
    "wikitext103_deq_postln": 98e6,
    "wikitext103_deq_postln_jr": 98e6,
    "wikitext103_deq_preln": 98e6,
    "wikitext103_deq_preln_jr": 98e6,
    "wikitext103_transformer_xl": 110e6,
    "wikitext103_trellis": 180e6,
    "cifar10_mondeq_multi": 170e3,
    "cifar10_mondeq_single": 172e3,
    "cifar10_revdeq": 10.3e6,
}


def reduced(config, batch_size):
    """The same model on few and small examples; its parameters do not depend on those."""
    smaller = dict(SMALLER.get(type(config.data).__name__, {}))
    if getattr(config.data, "test_length", None) is not None:
        smaller["test_windows"] = 2
    return data(config, batch_size=batch_size, **smaller)


QUICK = ("cifar10_revdeq", "cifar10_mondeq_single", "ptb_trellis", "wikitext103_deq_postln")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_builds(name, stand_in):
    run = build(reduced(stand_in(load_run(name)), 2))
    count = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params))
    assert name in COUNTS | PRINTED
    assert count == COUNTS.get(name, count)
    assert count == pytest.approx(PRINTED.get(name, count), rel=0.02 if run.task.text else 0.01)
    assert run.task.batches.batches_per_epoch > 0
    assert 0 < run.task.test_batch_size <= len(run.task.test.labels)


STEPPED = (  # one of each kind; the others take minutes each, and the same code
    "cifar10_densenet121",
    "cifar10_mdeq",
    "cifar10_mondeq_multi",
    "cifar10_revdeq",
    "cityscapes_mdeq_small",
    "ptb_trellis",
    "wikitext103_deq_preln_jr",
    "wikitext103_revdeq",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in STEPPED else pytest.mark.every) for n in NAMES],
)
def test_one_training_step(name, stand_in):
    """The published model, one example at a time and with few evaluations: loss of chance, a
    gradient, a finite update.
    """
    config = reduced(stand_in(load_run(name)), 1)
    # Without the warm-up, whose first step is of size 0.
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=0)
    )
    if not isinstance(config.model, EXPLICIT):
        budget = min(config.solver.max_steps, 4)
        config = dataclasses.replace(
            config,
            solver=dataclasses.replace(config.solver, max_steps=budget),
            gradient=dataclasses.replace(
                config.gradient, max_steps=config.gradient.max_steps and budget
            ),
            loop=dataclasses.replace(config.loop, budget_jitter=0),
        )
    run = build(config)
    state = run.initial_state()
    before = jax.device_get(state.params)
    state, metrics = run.train_step(run.model)(state, run.task.batches(0), 0.0, penalize=False)
    outputs = getattr(run.config.model, "vocab_size", None) or run.config.model.num_classes
    assert 0 < metrics["loss_nats"] < 2 * math.log(outputs)
    assert metrics["grad_norm"] > 0 and metrics["count_skipped"] == 0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(state.params))
    # At the start the gradient of ResNet-101 is in the thousands, also with more examples: it grows
    # with every BatchNorm and relu on its way back. SGD's first step is large with it, Adam's not.
    largest = math.inf if run.config.optimizer.kind == "sgd" else 1
    if getattr(config.model, "cutoffs", ()):
        del moved["embedding"]  # the stand-in has no rare words
    sizes = [float(size) for size in jax.tree.leaves(moved)]
    assert 0 < min(sizes) and max(sizes) < largest, (min(sizes), max(sizes))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar10_revdeq", ["--data.name", "mnist"], "data.augment must be False for mnist"),
        ("cifar10_revdeq", ["--data.data-dir", "nowhere"], "prepare"),
        ("wikitext103_revdeq", ["--data.directory", "nowhere"], "nowhere"),
    ],
)
def test_missing_data_is_one_error(name, options, message, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train.main([name, "--workdir", str(workdir), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not workdir.exists()


def test_the_learning_rate_falls_on_a_plateau():
    """By the optimiser's updates for a constant gradient: Adam's step is the learning rate."""
    config = OptimizerConfig(
        learning_rate=0.1,
        schedule="plateau",
        warmup_steps=0,
        plateau_steps=2,
        plateau_patience=2,
        plateau_factor=0.5,
    )
    rate, optimizer = config.build(total_steps=20)
    params = {"w": np.zeros(3, np.float32)}
    state, sizes = optimizer.init(params), []
    for _ in range(12):
        updates, state = optimizer.update({"w": np.ones(3)}, state, params, value=1.0)
        sizes.append(float(-updates["w"][0]))
    assert rate(7) == pytest.approx(0.1)
    assert sizes[0] == pytest.approx(0.1, rel=1e-3)
    ratios = [b / a for a, b in zip(sizes, sizes[1:], strict=False)]
    falls = [i for i, ratio in enumerate(ratios) if ratio < 0.9]
    assert falls and all(ratios[i] == pytest.approx(0.5, rel=1e-3) for i in falls)
    assert sizes[-1] <= 0.05
