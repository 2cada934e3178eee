"""Groups of processes whose batches are normalized as one: section 4 of Rota Bulò et al. 2018.

`inplace_abn.layers.SyncABN` takes such a group. `MPIGroup` is one over MPI; any object that satisfies `Group`
is another.
"""

from .group import Group
from .mpi import MPIGroup

__all__ = ["Group", "MPIGroup"]
