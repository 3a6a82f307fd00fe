"""For kill_runs.py: prints a hash of how checkpointable_mesh has divided a mesh between the ranks."""

from firedrake import Function, FunctionSpace, UnitSquareMesh
from firedrake.adjoint import checkpointable_mesh, continue_annotation, enable_disk_checkpointing
from mpi4py import MPI
from xxhash import xxh3_64_hexdigest

from localckpt.functions import numbering_digest

continue_annotation()
enable_disk_checkpointing()
mesh = checkpointable_mesh(UnitSquareMesh(12, 12))
parts = MPI.COMM_WORLD.gather(numbering_digest(Function(FunctionSpace(mesh, "CG", 1))))
if parts:
    print("partition", xxh3_64_hexdigest(b"".join(parts)))
