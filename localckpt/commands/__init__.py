"""The commands of ``python -m localckpt``, one module each.

Each module has ``add_parser``, which describes the command line, and ``main``, which carries the command out and
returns the exit status. Modules that need MPI or PETSc are imported inside functions: ``doctor`` and ``clean`` work
without them, and ``run`` leaves PETSc's start to the user's script.
"""
