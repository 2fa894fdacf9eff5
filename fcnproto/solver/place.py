"""Where a solver's snapshots go: their prefix and names, and the right to write there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fcnproto.errors import SolverError
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2
from fcnproto.schema.saving import check_hdf5_names
from fcnproto.solver import distributed, snapshots
from fcnproto.solver.locking import PrefixLock
from fcnproto.solver.nets import snapshot_prefix


class SnapshotPlace:
    """The place of one solver's snapshots; `file` is the solver's, or None."""

    def __init__(self, param: caffe_pb2.SolverParameter, file: Path | None) -> None:
        self.param, self.file = param, file
        self._lock = PrefixLock()

    @property
    def prefix(self) -> str:
        """The path that all names begin with. Raises `SolverError` where there is none, or nothing can be written."""
        return snapshot_prefix(self.param, self.file)

    def files(self, iteration: int) -> snapshots.Names:
        """The files of an iteration's snapshot."""
        return snapshots.names(self.prefix, iteration, self.param.snapshot_format == caffe_pb2.SolverParameter.HDF5)

    def check(self, net: Net, iteration: int) -> None:
        """Raise what would be wrong with a snapshot: its place, or names that HDF5 can't hold."""
        files = self.files(iteration)
        if files.model.suffix == ".h5":
            check_hdf5_names(files.model, [node.name for node in net.graph.nodes])

    def newest(self) -> str | None:
        """The newest snapshot here that is all right, as rank 0 sees it; None where there is none. All workers ask."""
        found: str | None = None
        if distributed.rank() == 0:
            with suppress(SolverError):
                found = str(snapshots.latest(self.prefix)[0])
        return next(iter(distributed.gather(found)))

    def acquire(self) -> bool:
        """Take the right to write here, for all workers; False where this one has it already.

        Raises `SolverError` where another process has it."""
        failure: Exception | None = None
        fresh = False
        if distributed.rank() == 0:
            try:
                fresh = self._lock.acquire(self.prefix)
            except (SolverError, OSError) as error:
                failure = error
        distributed.raise_together(failure)
        return fresh

    def release(self) -> None:
        """Give the right back."""
        self._lock.release()
