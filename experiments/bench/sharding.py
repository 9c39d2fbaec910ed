"""Sharding: what the devices of a mesh tell each other in a training step of the published models,
counted in the compiled program; nothing is run, and nothing of the size of a model is allocated.

    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=64 python -m experiments.bench sharding --out DIR
"""

import dataclasses
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jdeq
from experiments.bench.collectives import KINDS, Collective, collectives
from jdeq.data import Dataset
from jdeq.models import (
    DEQ_TRANSFORMER_WIKITEXT103,
    MDEQ,
    MDEQ_DIGITS,
    MDEQ_IMAGENET_SMALL,
    DEQTransformerConfig,
    DEQTransformerLM,
)
from jdeq.models.tensor_rules import TENSOR_RULES
from jdeq.training import (
    Layout,
    adamw,
    cross_entropy_loss,
    make_init,
    make_mesh,
    make_train_step,
)

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and the example that a device has of it."""

    name: str
    model: Any
    inputs: tuple[tuple[int, ...], str]  # of one example: its shape and dtype
    labels: tuple[int, ...]
    by_labels: bool
    local_stop: bool
    """As the text runs are trained: their softmax, too, is then each device's own."""


def recipes(quick: bool) -> list[Recipe]:
    """The models of the papers; tiny ones in their place for a quick run."""
    text = DEQ_TRANSFORMER_WIKITEXT103
    images = MDEQ_IMAGENET_SMALL
    length, image = 150, (224, 224, 3)
    if quick:
        text = DEQTransformerConfig(vocab_size=64, width=32, hidden=64, heads=2, memory=8)
        images, length, image = MDEQ_DIGITS, 8, (8, 8, 1)
    solve = {"solver": jdeq.Anderson(), "gradient": jdeq.Implicit(), "max_steps": 14}
    return [
        Recipe(
            name="DEQ-Transformer, WikiText-103",
            model=DEQTransformerLM(text, **solve),
            inputs=((length,), "int32"),
            labels=(length,),
            by_labels=not quick,
            local_stop=True,
        ),
        Recipe(
            name="MDEQ small, ImageNet",
            model=MDEQ(images, **solve),
            inputs=(image, "float32"),
            labels=(),
            by_labels=False,
            local_stop=False,  # it has batch statistics
        ),
    ]


def meshes(devices: int) -> list[tuple[int, int, int]]:
    """Data parallel, parameters split over 4, and matrices over 2 of those."""
    return [
        (devices, 1, 1),
        (devices // 4, 4, 1),
        (devices // 4, 2, 2),
    ]


def compiled_step(recipe: Recipe, layout: Layout) -> tuple[Any, Any]:
    """The training step, one example a device, and the placed shapes of its state."""
    rows = layout.batch_parts
    optimizer = adamw(lambda step: 1e-3)
    shape, dtype = recipe.inputs
    inputs = jax.ShapeDtypeStruct((rows, *shape), dtype)
    init = make_init(recipe.model, optimizer)
    state = layout.placed(jax.eval_shape(init, jax.random.key(0), inputs))

    labels = jax.ShapeDtypeStruct((rows, *recipe.labels), np.int32)
    batch: Any = Dataset(
        *(jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=layout.batch) for a in (inputs, labels))  # pyright: ignore[reportArgumentType]
    )
    loss = cross_entropy_loss(recipe.model, by_labels=recipe.by_labels)
    step: Any = make_train_step(loss, optimizer, layout=layout, local_stop=recipe.local_stop)
    return step.lower(state, batch, 0.0, penalize=False).compile(), state


def summary(found: list[Collective]) -> dict[str, dict[str, float]]:
    """By "a step of a solve" and "outside": kind -> how many, and MiB on a device."""
    sums: dict[str, dict[str, float]] = {"in loops": {}, "outside": {}}
    for collective in found:
        part = sums["in loops" if collective.in_loop else "outside"]
        for name, value in (("n", 1), ("MiB", collective.bytes / MIB)):
            part[f"{collective.kind} {name}"] = part.get(f"{collective.kind} {name}", 0) + value
    return sums


def run(*, out: Path, rounds: int, quick: bool) -> None:
    """Compile every step and write table.md and results.json to ``out``."""
    del rounds  # nothing is timed
    devices = jax.device_count()
    if devices % 4:
        note = (
            f"sharding: skipped. It takes a multiple of 4 devices, and there are {devices}: set "
            "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=64 before Python starts, and run it alone"
        )
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(note + "\n")
        print(note)
        return
    rows = []
    for recipe in recipes(quick):
        for data, fsdp, tensor in meshes(devices):
            mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor)
            layout = Layout(mesh=mesh, rules=TENSOR_RULES)
            start = time.perf_counter()
            program, state = compiled_step(recipe, layout)
            held = [
                math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                for leaf in jax.tree.leaves((state.params, state.opt_state))
            ]
            rows.append(
                {
                    "model": recipe.name,
                    "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
                    "mesh": f"{data} x {fsdp} x {tensor}",
                    "state_mib": sum(held) / MIB,
                    "collectives": summary(collectives(program.as_text())),
                    "compile_seconds": time.perf_counter() - start,
                }
            )
            print(f"{recipe.name} {mesh.shape}: {rows[-1]['compile_seconds']:.0f} s", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    manifest = {"jax": jax.__version__, "python": platform.python_version(), "devices": devices}
    (out / "results.json").write_text(json.dumps({"manifest": manifest, "rows": rows}, indent=2))
    (out / "table.md").write_text(table(rows, manifest))
    print((out / "table.md").read_text())


def table(rows: list[dict[str, Any]], manifest: dict[str, Any]) -> str:
    """Markdown: a row a model and mesh."""
    lines = [
        f"{manifest['devices']} devices, jax {manifest['jax']}; one example a device (one for two "
        "with tensor 2); MiB are those of the results on one device.",
        "",
        "| model | parameters | data x fsdp x tensor | parameters and optimiser a device "
        "| in loops, a step of each | outside, once a training step |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = [_cell(row["collectives"][name]) for name in ("in loops", "outside")]
        lines.append(
            f"| {row['model']} | {row['parameters']:,} | {row['mesh']} | "
            f"{row['state_mib']:.0f} MiB | {parts[0]} | {parts[1]} |"
        )
    return "\n".join(lines) + "\n"


def _cell(part: dict[str, float]) -> str:
    texts = []
    for kind in KINDS:
        if number := part.get(f"{kind} n"):
            size = part[f"{kind} MiB"]
            texts.append(f"{number:.0f} {kind} ({size:.3g} MiB)")
    return ", ".join(texts) or "none"
