"""A map of one number, ``z <- f(z; x)`` with z and x scalar: its surface, and cobwebs on its
slices.

Source: Bai, Koltun, Kolter (2021), Stabilizing Equilibrium Models by Jacobian Regularization,
figure 5.
"""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from mpl_toolkits.mplot3d.axes3d import Axes3D

from jdeq.plots.parts import finish


def surface(
    z: Float[np.ndarray, " states"],
    x: Float[np.ndarray, " inputs"],
    fz: Float[np.ndarray, "states inputs"],
    equilibrium: Float[np.ndarray, " inputs"],
    *,
    ax: Axes3D,
) -> Axes3D:
    """``f(z; x)`` over z and x, and the curve ``z*(x)`` of its fixed points on it.

    Args:
      z, x: the grid.
      fz: f there.
      equilibrium: z* at each x, where ``f(z*; x) = z*``; NaN where there is none.
      ax: of ``projection="3d"``.
    Raises:
      ValueError: for axes without a third dimension, or shapes that do not fit.
    """
    if not isinstance(ax, Axes3D):
        raise ValueError(f"jdeq.plots.surface: ax must have projection='3d'; got {ax}")
    for name, a, shape in (("fz", fz, (len(z), len(x))), ("equilibrium", equilibrium, (len(x),))):
        if np.shape(a) != shape:
            raise ValueError(
                f"jdeq.plots.surface: {name} must have the shape {shape} of z and x; got "
                f"{np.shape(a)}"
            )
    inputs, states = np.meshgrid(x, z)
    ax.plot_surface(
        inputs, states, np.asarray(fz), cmap="viridis", alpha=0.6, lw=0, rcount=40, ccount=40
    )
    # The surface would hide what lies on it: matplotlib draws whole objects, one over the other.
    ax.plot(x, equilibrium, equilibrium, "r--", lw=1.5, zorder=10, label="equilibrium z*(x)")
    ax.set_xlabel("input x")
    ax.set_ylabel("state z")
    ax.set_zlabel("f(z; x)")
    for axis in "xyz":
        ax.locator_params(axis=axis, nbins=5)
    ax.legend(fontsize="x-small", frameon=False, loc="upper left")
    return ax


def cobweb(
    z: Float[np.ndarray, " points"],
    fz: Float[np.ndarray, " points"],
    iterates: Float[np.ndarray, " steps"],
    *,
    ax: Axes,
    label: str = "f(z)",
) -> Axes:
    """The plain iteration ``z <- f(z)`` as a staircase between f and the diagonal.

    Args:
      z, fz: f on a range of z, in ascending order.
      iterates: z_0, f(z_0), f(f(z_0)), ..., two of them at least.
      label: of f, such as its slice x.
    Raises:
      ValueError: if there are fewer than two iterates.
    """
    if len(iterates) < 2:
        raise ValueError(
            f"jdeq.plots.cobweb: iterates must be two or more states; got {len(iterates)}"
        )
    ax.plot(z, fz, lw=1.5, label=label)
    ax.plot(z, z, color="0.4", lw=0.8, ls="--", label="diagonal, where f(z) = z")
    # Up or down to f, then across to the diagonal: (z0, z0), (z0, z1), (z1, z1), (z1, z2), ...
    corners = np.repeat(iterates, 2)
    steps = len(iterates) - 1
    ax.plot(corners[:-1], corners[1:], "r-", lw=0.9, marker="o", ms=2, label=f"{steps} evaluations")
    return finish(ax, "f(z)", "state z")
