"""Models: a training step of the DEQ-Transformer beside its explicit twin, and where its time goes;
generation against a cache beside calling the model on the whole text for each token.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jdeq
from experiments.bench.harness import Case, Result, measure, quartiles
from experiments.bench.report import write
from jdeq.data import Dataset
from jdeq.models import (
    DEQTransformerConfig,
    DEQTransformerLM,
    Sampling,
    TransformerXL,
    TransformerXLConfig,
    generate,
)
from jdeq.training import cross_entropy_loss, equilibrium_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A DEQ-Transformer, its explicit twin of as many parameters, and a batch."""

    deq: DEQTransformerConfig
    twin: TransformerXLConfig
    batch: int
    length: int
    evaluations: int

    @property
    def title(self) -> str:
        return f"{self.batch} x {self.length} bytes, width {self.deq.width}"


def pair(width: int, hidden: int, twin: tuple[int, int, int], batch, length, evaluations) -> Size:
    """``twin``: width, hidden units and layers of the explicit model; memories of a segment."""
    parts = {"vocab_size": 256, "heads": 4, "memory": length}
    width_twin, hidden_twin, layers = twin
    return Size(
        deq=DEQTransformerConfig(**parts, width=width, hidden=hidden),
        twin=TransformerXLConfig(**parts, width=width_twin, hidden=hidden_twin, layers=layers),
        batch=batch,
        length=length,
        evaluations=evaluations,
    )


SIZES = (
    pair(96, 768, (68, 246, 4), 8, 64, 12),
    pair(512, 2048, (256, 1434, 4), 4, 64, 12),
)
ACCELERATED = pair(512, 2048, (256, 1434, 4), 64, 256, 12)
"""A size that fills an accelerator; measured there in place of `SIZES`."""
QUICK = (pair(8, 12, (8, 12, 1), 1, 4, 3),)
NEVER = 1e-9
STEP = "jdeq DEQ-Transformer, step"
RESTARTED = "jdeq DEQ-Transformer, RestartedAnderson, step"
TWIN = "Transformer-XL, step"
SHORTEST = "jdeq DEQ-Transformer, max_steps 1, OneStep"
"""A step that hardly solves: two evaluations of f, the second to know the residual. What it takes
beside them and the pullback, every step takes."""
PARTS = (
    "evaluations of f alone",
    "products with f's transposed Jacobian alone",
    "the product into parameters and injection alone",
)


def draw(size: Size, model: Any) -> tuple[Any, Any]:
    """Variables as training has them, and a batch of inputs and labels."""
    tokens = jax.random.randint(jax.random.key(0), (size.batch, size.length + 1), 0, 256)
    variables = jax.jit(model.init)(jax.random.key(1), tokens[:, :-1])
    if "inject" in variables["params"]:
        # As training makes it: under the injection of the first step the map hardly contracts.
        variables["params"]["inject"]["kernel"] *= 30
    return variables, (tokens[:, :-1], tokens[:, 1:])


def training_step(model: Any, _f: Any = None, *, penalize: bool = False) -> Any:
    """Loss and gradient of a training step, ``(params, memory, batch)``, with the penalty added."""
    loss = cross_entropy_loss(model, probe_backward=False)

    def objective(params, memory, batch):
        out = loss(
            params,
            {"memory": memory},
            Dataset(*batch),
            key=jax.random.key(2),
            probe=jdeq.backward_probe(),
            penalize=penalize,
        )
        return out.loss_nats + out.penalty

    return jax.value_and_grad(objective)


def step_cases(size: Size) -> list[Case]:
    """The steps, ours by two solvers, one that hardly solves, and alone what ours compute of f."""
    deq = DEQTransformerLM(
        size.deq,
        gradient=jdeq.Implicit(rtol=NEVER, max_steps=size.evaluations),
        rtol=NEVER,
        max_steps=size.evaluations,
    )
    restarted = deq.clone(solver=jdeq.RestartedAnderson())
    shortest = deq.clone(solver=jdeq.Picard(), gradient=jdeq.OneStep(), max_steps=1)
    models = {STEP: deq, RESTARTED: restarted, SHORTEST: shortest, TWIN: TransformerXL(size.twin)}
    group = f"training step, {size.title}, {size.evaluations} evaluations and products"
    cases = []
    for name, model in models.items():
        variables, batch = draw(size, model)
        memory = jax.tree.map(
            lambda a: (
                jnp.full_like(a, size.length)
                if a.ndim == 1
                else jax.random.normal(jax.random.key(3), a.shape)
            ),
            variables["memory"],
        )
        args = (variables["params"], memory, batch)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        cases.append(
            Case(
                group=group,
                name=name,
                make=partial(training_step, model),
                f=None,
                args=args,
                reference=TWIN,
                check=lambda out, n=parameters: {"parameters": n},
            )  # fmt: skip
        )
        if name == STEP:
            known = variables | {"memory": memory}
            posed = equilibrium_of(deq, known, batch[0], mutable=["memory"])
    f, params, _, x, z = posed

    def evaluations(_f):
        def run(params, z, x):
            return jax.lax.fori_loop(0, size.evaluations, lambda _, z: f(params, z, x), z)

        return run

    def products(_f):
        def run(params, z, x):
            _, pull = jax.vjp(lambda z: f(params, z, x), z)
            return jax.lax.fori_loop(0, size.evaluations, lambda _, c: pull(c)[0], z)

        return run

    def pullback(_f):
        def run(params, z, x):
            return jax.vjp(lambda params, x: f(params, z, x), params, x)[1](z)

        return run

    alone = {"f": None, "group": group, "reference": TWIN}
    cases += [
        Case(name=PARTS[0], make=evaluations, args=(params, z, x), **alone),
        Case(name=PARTS[1], make=products, args=(params, z, x), **alone),
        Case(name=PARTS[2], make=pullback, args=(params, z, x), **alone),
    ]
    return cases


def step_note(size: Size, results: list[Result]) -> str:
    """Tokens a second, and the share of the steps outside evaluations and products."""
    mine = {r.case.name: r for r in results if f", {size.title}," in r.case.group}
    seconds = {name: np.array(r.seconds) for name, r in mine.items()}
    evaluations, products, pullback = (seconds[part] for part in PARTS)
    tokens = size.batch * size.length
    needed = evaluations + products + pullback
    share, low, high = quartiles(1 - needed / seconds[STEP])
    restarted = quartiles(1 - needed / seconds[RESTARTED])
    ends = seconds[SHORTEST] - 2 * evaluations / size.evaluations - pullback
    head, *_ = quartiles(ends / seconds[STEP])
    speed = {name: tokens / np.median(seconds[name]) for name in (STEP, TWIN)}
    counts = {name: int(mine[name].facts["parameters"]) for name in (STEP, TWIN)}
    return (
        f"{size.title}: {speed[STEP]:.0f} tokens a second with {counts[STEP]:,} parameters, "
        f"explicit {speed[TWIN]:.0f} with {counts[TWIN]:,}; share of the step outside "
        f"evaluations of f and its products {share:.1%} ({low:.1%} to {high:.1%}), of which "
        f"{head:.1%} are memory, embedding, injection and softmax with their gradients, and "
        f"{share - head:.1%} the solvers; with RestartedAnderson {restarted[0]:.1%} "
        f"({restarted[1]:.1%} to {restarted[2]:.1%})"
    )


def generation_cases(size: Size, steps: int) -> list[Case]:
    """``steps`` tokens after a prompt of 16, by the most probable token."""
    model = DEQTransformerLM(size.deq, rtol=1e-6, max_steps=300)
    variables, (tokens, _) = draw(size, model)
    prompt = tokens[:1, :16]

    def make(cached, _f):
        def run(params):
            out = generate(
                model, {"params": params}, prompt, jax.random.key(4), steps=steps,
                sampling=Sampling(temperature=0.0), cached=cached,
            )  # fmt: skip
            return out.log_probs

        return run

    return [
        Case(
            group=f"generate {steps} bytes, width {size.deq.width}, rtol 1e-6",
            name=name,
            make=partial(make, cached),
            f=None,
            args=(variables["params"],),
            reference="the whole text, at full length, for each token",
        )
        for name, cached in (
            ("jdeq, cached equilibria", True),
            ("the whole text, at full length, for each token", False),
        )
    ]


def generation_note(cases: list[Case]) -> str:
    """How far the two ways are apart."""
    cached, whole = (np.asarray(jax.jit(c.make(c.f))(*c.args)) for c in cases)
    return (
        f"{cases[0].group}: log-probabilities differ by at most {np.abs(cached - whole).max():.1e}"
    )


def parts(quick: bool) -> tuple[str, ...]:
    """What can be measured alone."""
    del quick
    return ("step", "generation")


def run(*, out: Path, rounds: int, quick: bool, only: tuple[str, ...] = ()) -> None:
    """Measure everything in one process and write the report to ``out``.

    Args:
      only: of `parts`; empty: all of them.
    """
    report = partial(print, flush=True)
    chosen = only or parts(quick)
    on_cpu = jax.default_backend() == "cpu"
    sizes = QUICK if quick else SIZES if on_cpu else (ACCELERATED,)
    limit = {} if on_cpu else {"temp_limit_mib": 32768.0}
    results, notes = [], []
    if "step" in chosen:
        cases = [case for size in sizes for case in step_cases(size)]
        results += measure(cases, rounds=rounds, report=report, **limit)
        notes += [step_note(size, results) for size in sizes]
    if "generation" in chosen:
        texts = generation_cases((QUICK if quick else SIZES)[0], 6 if quick else 256)
        # A call takes a minute without a cache: a few rounds.
        results += measure(texts, rounds=min(rounds, 3), report=report)
        notes.append(generation_note(texts))
    settings = {"rounds": rounds, "quick": quick, "parts": chosen}
    groups = list(dict.fromkeys(result.case.group for result in results))
    write(out, "models", results, notes, settings, groups)
    print((out / "table.md").read_text())
