"""Fixed-point solvers, one method per file."""

from jdeq.solvers.anderson import Anderson
from jdeq.solvers.broyden import Broyden
from jdeq.solvers.newton_krylov import NewtonKrylov
from jdeq.solvers.picard import Picard
from jdeq.solvers.restarted_anderson import RestartedAnderson
from jdeq.solvers.reversible import Reversible

__all__ = ["Anderson", "Broyden", "NewtonKrylov", "Picard", "RestartedAnderson", "Reversible"]
