# The targets; CONTRIBUTING.md describes them. Each first installs what is missing (scripts/install-stack).
# With another Firedrake than the newest, or complex scalars: make test FIREDRAKE=2026.4.3, make python SCALAR=complex
# To use an environment of your own instead: make test PYTHON=/path/to/python
# quick, matrix and matrix-long have PETScs and environments of their own.

.PHONY: demo quick test lint docs bench bench-full soak sanitize conformance matrix matrix-long matrix-firedrake \
    release-check kill python

DEMO = examples/burgers.py --compare
demo:  # no binding: another program may keep a core busy for a while
	@LOCALCKPT_TOOLS=no OMPI_MCA_hwloc_base_binding_policy=none \
	    scripts/run timeout --foreground -k 10 600 mpiexec -n 2 python $(DEMO)

quick:
	@scripts/quick

# make test TESTS=tests/core RANKS=2
test:
	@scripts/test

lint:
	@scripts/lint

# The manual; a warning is an error.
docs:
	@scripts/run python -m sphinx -q -W --keep-going docs build/docs
	@echo "the manual is in build/docs/index.html"

# JSON files, tables and pictures in benchmarks/results; 'bench' ends within an hour, 'bench-full' takes hours.
# A run begins nothing new after its seconds, which for a full one are ten times as many.
BENCH = iteration:1:560 iteration:2:520 processes:1:660 mechanisms:1:240 mechanisms:2:220 save-restore:1:200 \
    save-restore:2:130 tape:1:120 tape:2:120 timesteps:1:360 garbage:1:560 cgroup:1:260 trajectory:1:60 trajectory:2:60
BENCH_FULL = $(BENCH) iteration:4:120 save-restore:4:200 save-restore:8:120 tape:4:50 plan:1:90 plan:2:90 \
    precision:1:40 precision:2:40
bench:
	@scripts/bench $(BENCH)

bench-full:
	@scripts/bench --full $(BENCH_FULL)

# Hundreds of optimisation iterations, with constant memory, descriptors and disk use; arrays of more than 2 GiB.
SOAK = 500
soak:
	@scripts/run python -m pytest -m 'parallel[1]' tests/faults/test_soak.py tests/faults/large_transfers.py \
	    tests/adjoint/test_interleavings.py --soak $(SOAK) --timeout 7200

sanitize:
	@scripts/sanitize

# make conformance CHECKOUT=/path/to/firedrake
conformance:
	@scripts/conformance

matrix:
	@scripts/matrix

matrix-long:
	@scripts/matrix long

# All tests that need Firedrake, on each release and Python that localckpt is for; the first time, more than two hours.
matrix-firedrake:
	@scripts/matrix-firedrake

# What a release must pass before it is uploaded.
release-check:
	@scripts/release-check

# The path of the interpreter.
python:
	@scripts/run echo python

# Runs that resume, killed 200 times at random; takes hours, and goes on where it was ended.
kill:
	@scripts/run python tests/faults/kill_runs.py build/kills
