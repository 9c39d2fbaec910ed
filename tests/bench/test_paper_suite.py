"""The suite of published models: operations counted by hand, sizes, a quick run without extras."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import paper
from experiments.bench.flops import program_flops
from experiments.bench.paper_programs import groups_of
from experiments.bench.paper_rows import full
from jdeq.training import make_init

M, K = 8, 16
PRODUCT = 2 * M * K * K
ABSENT = "tyro tensorflow_datasets jaxopt grain sklearn tokenizers PIL matplotlib tensorboardX"


def flops(f, *shapes, trips=()):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return program_flops(jax.jit(f).trace(*arguments).jaxpr, trips)


def test_flops_of_loops_and_branches():
    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0] @ w

    def dynamic(x, w):
        def inner(x):
            return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ w), (0, x))[1]

        return jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, inner(c[1])), (0, x))[1]

    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w, lambda x: x @ w @ w, x)

    assert flops(scanned, (M, K), (K, K)) == 8 * PRODUCT
    assert flops(dynamic, (M, K), (K, K), trips=(5, 3)) == 15 * PRODUCT
    assert flops(branch, (M, K), (K, K)) == PRODUCT
    for trips in ((5,), (5, 3, 2)):
        with pytest.raises(ValueError, match="trips must have one entry for each while loop"):
            flops(dynamic, (M, K), (K, K), trips=trips)


def test_flops_of_a_gradient_and_a_convolution():
    def loss(w, x):
        return jnp.sum(jax.checkpoint(lambda x: jnp.tanh(x @ w))(x))

    # forward, again when recomputed, and the kernel's gradient
    assert flops(jax.grad(loss), (K, K), (M, K)) in (2 * PRODUCT, 3 * PRODUCT)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert flops(convolve, (2, 6, 6, 3), (3, 3, 3, 5)) == 2 * (2 * 4 * 4 * 5) * 27


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_of_padding_strides_and_transposes(groups):
    """By hand: 5 inputs, stride 2, padding 1 on each side, 3 taps: 3 positions that meet 2, 3 and 2
    inputs; each pair of those is met again in the gradients for the input and for the kernel.
    """

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
        )  # fmt: skip

    def pulled(x, w, y):
        return jax.vjp(convolve, x, w)[1](y)

    forward = 2 * (2 * 4 * (6 // groups)) * 7
    assert flops(convolve, (2, 5, 6), (3, 6 // groups, 4)) == forward
    assert flops(pulled, (2, 5, 6), (3, 6 // groups, 4), (2, 3, 4)) == 3 * forward


def test_flops_of_batched_products_are_those_of_xla():
    def product(a, b):
        return jnp.einsum("bik,bkhj->bihj", a, b)

    shapes = (3, 4, 5), (3, 5, 2, 7)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    counted: Any = jax.jit(product).lower(*arguments).cost_analysis()
    assert flops(product, *shapes) == counted["flops"] == 2 * 3 * 4 * 5 * 14


def test_first_of_each_model_is_compiled_before_its_others(monkeypatch):
    began, ended = {}, {}

    def compile_row(group, row, states, *, counting):
        began[group.part, row.name] = len(ended)
        ended[group.part, row.name] = True
        return group, row

    monkeypatch.setattr(paper, "compile_row", compile_row)
    groups = [group for task in full() for group in groups_of(task, ("bfloat16", "float32"))]
    assert len({group.part for group in groups}) == len(groups) == 9
    text = groups[:3]
    with ThreadPoolExecutor(4) as pool:
        done = paper.compile_groups(text, cast(Any, None), pool, counting=False)
    assert done == [(group, row) for group in text for row in group.rows]
    first = {(row.state, group.dtype): (group.part, row.name) for group, row in reversed(done)}
    others = set(began) - set(first.values())
    assert len(first) == 8  # four models, training in two precisions
    assert min(began[name] for name in others) >= len(first)


@pytest.mark.slow
def test_sizes_are_the_published_ones():
    millions = {
        "xl": 110.3, "post": 97.7, "pre_jr": 97.7, "post_jr": 97.7, "resnet": 44.5, "small": 16.8,
        "large": 67.1,
    }  # fmt: skip
    for task in full():
        assert {row.name for row in task.rows} >= {task.twin}
        assert len({row.name for row in task.rows}) == len(task.rows)
        for name, model in {row.state: row.model for row in task.rows}.items():
            if hasattr(model, "gradient"):
                model = model.clone(max_steps=1)
            init = make_init(model, task.optimizer)
            state = jax.eval_shape(init, jax.random.key(0), task.shapes().inputs)
            count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            assert round(count / 1e6, 1) == millions[name]


@pytest.mark.slow
def test_quick_run_without_the_extras(quick_run):
    """Every row works and has the evaluations and products of its budget, or else an error."""
    code = (
        f"import runpy, sys\nfor name in {ABSENT.split()}: sys.modules[name] = None\n"
        "runpy.run_module('experiments.bench', run_name='__main__')"
    )
    content, _ = quick_run("paper", ("-c", code))
    assert "matplotlib is not installed: no plot" in content["notes"]
    cases = content["cases"]
    assert len(cases) == 14 and not any(case["error"] for case in cases)
    for case in cases:
        assert case["ms"] > 0 and case["per_second"] > 0 and case["flops_ratio"] > 0
        assert "utilisation" not in case  # the peak of a CPU is not known
    counts = {
        case["name"]: (case["evaluations"], case["products"])
        for case in cases
        if "evaluations" in case
    }
    assert counts["jdeq post-norm 5/4, Anderson, adjoint Broyden"] == (7, 4)
    assert counts["jdeq MDEQ-small 3/3, Broyden"] == (5, 3)
