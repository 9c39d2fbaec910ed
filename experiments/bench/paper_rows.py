"""What the suite ``paper`` times: the published models, their budgets, rules and explicit twins.

A budget n/m is n evaluations forward and m steps of the adjoint solve, fixed: no stop test.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jdeq
from jdeq.data import Dataset
from jdeq.gradients.implicit import starts_at_zero
from jdeq.models import (
    DEQ_TRANSFORMER_WIKITEXT103,
    DEQ_TRANSFORMER_WIKITEXT103_JR,
    MDEQ,
    MDEQ_IMAGENET_LARGE,
    MDEQ_IMAGENET_SMALL,
    RESNET101_IMAGENET,
    TRANSFORMER_XL_WIKITEXT103,
    DEQTransformerLM,
    ResNet,
    TransformerXL,
)
from jdeq.training import adamw, sgd, warmup_cosine

NEVER = 1e-9
"""A relative residual that is not reached."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A model that is trained or run in one way.

    Args:
      name: in the table.
      model: with its solver, rule and budget.
      state: rows of one name and one model configuration share parameters.
      trips: how often each solve's loop runs in a training step, the forward one first.
      counts: evaluations and products of a training step that a count has to find; None: unknown.
      penalize: with the Jacobian penalty, at weight 1.
      main: also timed in float32, and without training.
    """

    name: str
    model: Any
    state: str
    trips: tuple[int, ...] = ()
    counts: tuple[int, int] | None = None
    penalize: bool = False
    main: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Rows that read the same batch; ``twin`` names the explicit one that ratios are taken to."""

    name: str
    part: str  # its name on the command line
    size: str
    unit: Literal["tokens", "images"]
    units: int  # of a batch
    draw: Callable[[], Dataset]
    optimizer: optax.GradientTransformation
    by_labels: bool
    twin: str
    rows: tuple[Row, ...]

    def shapes(self) -> Dataset:
        """Of a batch."""
        return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, self.draw()))


_RULES = {
    "OneStep": jdeq.OneStep(),
    "Phantom(5)": jdeq.Phantom(steps=5),
    "Neumann(5)": jdeq.Neumann(terms=5),
    "SharedInverse": jdeq.SharedInverse(),
}
_SOLVERS = {"Picard": jdeq.Picard(), "Anderson": jdeq.Anderson(), "Broyden": jdeq.Broyden()}


def implicit(prefix: str, model: Any, forward: str, adjoint: str, n: int, m: int, **options) -> Row:
    """The implicit function theorem with a budget of n/m."""
    solvers = forward if forward == adjoint else f"{forward}, adjoint {adjoint}"
    penalty = options.get("penalize", False)
    return Row(
        name=f"{prefix} {n}/{m}, {solvers}" + (", penalty" if penalty else ""),
        model=model.clone(
            solver=_SOLVERS[forward],
            gradient=jdeq.Implicit(solver=_SOLVERS[adjoint], rtol=NEVER, max_steps=m),
            rtol=NEVER,
            max_steps=n,
            test_every=max(n, m),
        ),
        trips=(n - 1, m if starts_at_zero(_SOLVERS[adjoint]) else m - 1),
        # The map is linearized in the state and, at its end, in the parameters.
        counts=None if penalty else (n + 2, m),
        **options,
    )


def approximate(prefix: str, model: Any, forward: str, n: int, rule: str, **options) -> Row:
    """n evaluations and a rule without a backward loop."""
    return Row(
        name=f"{prefix} {n}, {forward}, {rule}",
        model=model.clone(
            solver=_SOLVERS[forward], gradient=_RULES[rule], rtol=NEVER, max_steps=n, test_every=n
        ),
        trips=(n - 1,),
        **options,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSize:
    """Shrinks the models of WikiText-103."""

    batch: int = 56
    length: int = 150
    budgets: tuple[tuple[int, int], ...] = ((30, 30), (14, 14), (12, 13))
    deq: dict[str, Any] = dataclasses.field(default_factory=dict)
    twin: dict[str, Any] = dataclasses.field(default_factory=dict)
    every_rule: bool = True


def text_task(size: TextSize) -> Task:
    """WikiText-103: wikitext103_deq_postln, _preln_jr and _postln_jr beside _transformer_xl."""
    base = dataclasses.replace(DEQ_TRANSFORMER_WIKITEXT103, **size.deq)
    # The memory of 300 goes with segments of 150.
    jr = dataclasses.replace(
        DEQ_TRANSFORMER_WIKITEXT103_JR, **(size.deq | {"memory": 2 * size.length})
    )
    base = dataclasses.replace(base, memory=size.length)
    twin = dataclasses.replace(TRANSFORMER_XL_WIKITEXT103, **(size.twin | {"memory": size.length}))
    post, post_jr = DEQTransformerLM(base), DEQTransformerLM(jr)
    pre_jr = DEQTransformerLM(dataclasses.replace(jr, pre_norm=True))
    (n0, m0), (n1, m1), (n, m) = size.budgets
    recipe, half = ("Anderson", "Broyden"), (n // 2, n // 2)
    name = "jdeq post-norm"
    rows = [
        Row(name="Transformer-XL", model=TransformerXL(twin), state="xl", main=True),
        implicit(name, post, *recipe, n0, m0, state="post", main=True),
        implicit("jdeq pre-norm", pre_jr, *recipe, n1, m1, state="pre_jr", main=True),
        implicit(name, post_jr, *recipe, n, m, state="post_jr", main=True),
        implicit(name, post_jr, *recipe, n, m, state="post_jr", penalize=True),
        approximate(name, post_jr, "Anderson", n, "OneStep", state="post_jr"),
    ]
    if size.every_rule:
        rows += [
            *(implicit(name, post_jr, s, s, n, m, state="post_jr") for s in _SOLVERS),
            approximate(name, post_jr, "Anderson", n, "Phantom(5)", state="post_jr"),
            approximate(name, post_jr, "Anderson", n, "Neumann(5)", state="post_jr"),
            approximate(name, post_jr, "Broyden", n, "SharedInverse", state="post_jr"),
            implicit(name, post_jr, *recipe, *half, state="post_jr"),
            approximate(name, post_jr, "Picard", half[0], "OneStep", state="post_jr"),
            approximate(name, post_jr, "Picard", half[0] // 2, "OneStep", state="post_jr"),
        ]
    vocab = base.vocab_size

    def draw() -> Dataset:
        # Zipf's law, as words have it: 4 of 5 lie in the first cluster.
        uniform = np.random.default_rng(0).random((size.batch, size.length + 1))
        tokens = np.minimum(np.exp(uniform * np.log(vocab)), vocab - 1).astype(np.int32)
        return Dataset(tokens[:, :-1], tokens[:, 1:])

    schedule = warmup_cosine(peak=2.5e-4, warmup_steps=16_000, total_steps=300_000)
    return Task(
        name="WikiText-103",
        part="tokens",
        size=f"{size.batch} x {size.length} tokens, widths {base.width} and {twin.width}",
        unit="tokens",
        units=size.batch * size.length,
        draw=draw,
        optimizer=adamw(schedule, clip_norm=0.25),
        by_labels=True,
        twin="Transformer-XL",
        rows=tuple(rows),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Shrinks the models of ImageNet."""

    batch: int = 32
    side: int = 224
    budgets: tuple[int, ...] = (27, 14)
    models: tuple[tuple[str, dict[str, Any]], ...] = (("small", {}), ("large", {}))
    twin: dict[str, Any] = dataclasses.field(default_factory=dict)
    every_rule: bool = True


def image_tasks(size: ImageSize) -> list[Task]:
    """ImageNet: imagenet_mdeq_small and _large, with Broyden both ways, each beside _resnet101."""
    configs = {"small": MDEQ_IMAGENET_SMALL, "large": MDEQ_IMAGENET_LARGE}
    twin = dataclasses.replace(RESNET101_IMAGENET, **size.twin)
    explicit = Row(name="ResNet-101", model=ResNet(twin), state="resnet", main=True)
    solvers = ("Broyden", "Broyden")

    def rows_of(which: str, change: dict[str, Any]) -> tuple[Row, ...]:
        name, model = f"jdeq MDEQ-{which}", MDEQ(dataclasses.replace(configs[which], **change))
        rows = [implicit(name, model, *solvers, n, n, state=which, main=True) for n in size.budgets]
        if which == "small" and size.every_rule:
            n = size.budgets[-1]
            rows += [
                implicit(name, model, *solvers, n, n, state=which, penalize=True),
                implicit(name, model, *solvers, n // 2, n // 2, state=which),
                approximate(name, model, "Broyden", n // 2, "OneStep", state=which),
            ]
        return (explicit, *rows)

    def draw() -> Dataset:
        rng = np.random.default_rng(0)
        images = rng.standard_normal((size.batch, size.side, size.side, 3), np.float32)
        return Dataset(images, rng.integers(0, twin.num_classes, size.batch, np.int32))

    schedule = warmup_cosine(peak=0.05, warmup_steps=0, total_steps=1_000_900)
    return [
        Task(
            name=f"ImageNet, MDEQ-{which}",
            part="images" if which == "small" else f"images-{which}",
            size=f"{size.batch} images of {size.side} x {size.side}",
            unit="images",
            units=size.batch,
            draw=draw,
            optimizer=sgd(schedule, weight_decay=5e-5),
            by_labels=False,
            twin="ResNet-101",
            rows=rows_of(which, change),
        )
        for which, change in size.models
    ]


def _narrow(factor: int, vocab: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two text models, ``factor`` times narrower, with 10 heads as published."""
    shared = {"vocab_size": vocab, "cutoffs": (vocab // 8, vocab // 4, vocab // 2), "divisor": 2}
    return (
        {"width": 700 // factor, "hidden": 48000 // factor**2, **shared},
        {"width": 610 // factor // 10 * 10, "hidden": 2440 // factor, **shared},
    )


def full() -> list[Task]:
    """The published sizes."""
    return [text_task(TextSize()), *image_tasks(ImageSize())]


def reduced() -> list[Task]:
    """For a CPU: 7 times narrower text models, images of 64 x 64 for a quarter of the channels, and
    fewer rules.
    """
    deq, twin = _narrow(7, 4096)
    channels = {"channels": (8, 16, 32, 64), "head_channels": (6, 12, 24, 48)}
    return [
        text_task(TextSize(batch=4, length=50, deq=deq, twin=twin, every_rule=False)),
        *image_tasks(
            ImageSize(
                batch=2,
                side=64,
                models=(("small", channels | {"head_features": 512}),),
                twin={"width": 16},
                every_rule=False,
            )
        ),
    ]


def quick() -> list[Task]:
    """A tiny run, to test it."""
    deq, twin = _narrow(35, 64)
    tiny = {"channels": (4, 8), "head_channels": (2, 4), "head_features": 16, "groups": 2}
    small = {"num_classes": 10, "downsamples": 0, "expansion": 2}
    return [
        text_task(
            TextSize(
                batch=2,
                length=6,
                budgets=((5, 4), (3, 3), (4, 3)),
                deq=deq,
                twin=twin | {"layers": 2},
                every_rule=False,
            )
        ),
        *image_tasks(
            ImageSize(
                batch=2,
                side=8,
                budgets=(3,),
                models=(("small", tiny | small),),
                twin={"blocks": (1,), "width": 4, "num_classes": 10},
                every_rule=False,
            )
        ),
    ]
