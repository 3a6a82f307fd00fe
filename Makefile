# make demo | quick | test | lint | docs | bench | soak | sanitize | matrix | conformance | python: see CONTRIBUTING.md.
# Each first installs what is missing (scripts/install-stack).
# To use an environment of your own instead: make test PYTHON=/path/to/python
# quick, matrix and matrix-long have PETScs and environments of their own (scripts/quick, scripts/matrix).

PYTHON = $$(scripts/install-stack)
DEMO = examples/burgers.py --compare
TESTS = tests
RANKS = 1 2 3
SOAK = 500
CHECKOUT = $(error name a checkout of Firedrake: make conformance CHECKOUT=/path/to/firedrake)
FIREDRAKE_TESTS = adjoint/test_disk_checkpointing.py adjoint/test_burgers_newton.py \
    adjoint/test_checkpointing_multistep.py output/test_adjoint_disk_checkpointing.py
DIFFER = test_checkpoint_indices_pruning# of a private dictionary that only Firedrake's own class has

SHELL = bash
.SHELLFLAGS = -euo pipefail -c
.ONESHELL:
.PHONY: demo test lint docs soak sanitize python conformance quick matrix matrix-long bench bench-full
unexport PETSC_DIR PETSC_ARCH PYTHONPATH PYTHONHOME  # of another stack than this one

export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export OMPI_MCA_rmaps_base_oversubscribe = 1
export OMP_NUM_THREADS = 1

quick:
	@scripts/quick

demo:
	@python="$(PYTHON)"
	export OMPI_MCA_hwloc_base_binding_policy=none  # a core may be somebody else's for a while
	timeout --foreground -k 10 600 mpiexec -n 2 "$$python" $(DEMO) </dev/null

# Ranks other than 0 write to build/tests/, which is shown where something failed.
test:
	@python="$(PYTHON)"
	rm -rf build/tests && mkdir -p build/tests
	quieten='r=$${OMPI_COMM_WORLD_RANK:-$${PMI_RANK:-0}}
	    [ $$r = 0 ] || exec >build/tests/$$n-rank$$r.log 2>&1
	    exec "$$@"'
	result=0
	for n in $(RANKS); do
	    echo "tests on $$n rank(s)"
	    if [ $$n = 1 ]; then
	        set -- "$$python" -m pytest $(TESTS) --color=no -m 'parallel[1]'
	    else
	        set -- mpiexec -n $$n bash -c "$$quieten" - \
	            "$$python" -m pytest $(TESTS) -v --color=no -m 'parallel[match]' -p no:cacheprovider
	    fi
	    status=0
	    n=$$n timeout --foreground -k 10 1800 "$$@" </dev/null | tee build/tests/$$n.log || status=$$?
	    [ $$status != 5 ] || status=0  # there is no test for so many ranks
	    if [ $$status != 0 ]; then
	        result=1
	        tail -v -n 60 build/tests/$$n-rank*.log 2>/dev/null || true
	        # A run that was ended, or that failed on another rank, is one failure in the sum.
	        grep -qE '^=.* (failed|error).* in [0-9.]+s' build/tests/$$n.log ||
	            echo "== 1 failed in 0s ==" >>build/tests/$$n.log
	        echo "tests on $$n rank(s) FAILED, exit status $$status"
	    fi
	done
	sum() { { grep -h '^=.* in [0-9.]*s' build/tests/?.log || true; } | grep -oE "[0-9]+ ($$1)" | awk '{s += $$1} END {print s + 0}'; }
	echo "total: $$(sum passed) passed, $$(sum 'failed|error') failed, $$(sum skipped) skipped"
	[ $$(sum 'passed|failed|error') != 0 ] || result=5
	exit $$result

lint:
	@python="$(PYTHON)"
	result=0
	"$$python" -m ruff check . || result=1
	PATH="$$(dirname "$$python"):$$PATH" cython-lint src localckpt || result=1
	"$$python" -m mypy || result=1
	exit $$result

# The manual, into build/docs; a warning is an error.
docs:
	@python="$(PYTHON)"
	"$$python" -m sphinx -q -W --keep-going docs build/docs
	echo "the manual is in build/docs/index.html"

# JSON files, tables and pictures in benchmarks/results; 'bench' ends within an hour, 'bench-full' takes hours.
# A run begins nothing new after its seconds, which for a full one are ten times as many.
BENCH = iteration:1:560 iteration:2:520 processes:1:660 mechanisms:1:240 mechanisms:2:220 save-restore:1:200 \
    save-restore:2:130 tape:1:120 tape:2:120 timesteps:1:360 garbage:1:560 cgroup:1:260
BENCH_FULL = $(BENCH) iteration:4:120 save-restore:4:200 save-restore:8:120 tape:4:50
bench bench-full:
	@python="$(PYTHON)"
	cd benchmarks
	mkdir -p results
	result=0
	full=$(if $(filter bench-full,$@),--full)
	for run in $(if $(filter bench-full,$@),$(BENCH_FULL),$(BENCH)); do
	    IFS=: read -r name n seconds <<<"$$run"
	    echo "$$name on $$n rank(s)"
	    [ -z "$$full" ] || seconds=$${seconds}0
	    set -- "$$python" -m pytest "test_$${name/-/_}.py" $$full --budget "$$seconds" $(BENCH_OPTIONS) --timeout 0 \
	        --benchmark-json "results/$$name-$$n.json" --benchmark-quiet -q --color=no -p no:cacheprovider
	    [ "$$n" = 1 ] || set -- mpiexec -n "$$n" "$$@"
	    [ "$$n" -le "$$(nproc --all)" ] || export OMPI_MCA_mpi_yield_when_idle=1
	    timeout --foreground -k 10 $$((seconds + 300)) "$$@" </dev/null || result=1
	done
	"$$python" report.py >/dev/null
	echo "benchmarks/results/report.md"
	exit $$result

# Hundreds of optimisation iterations: memory, descriptors and disk use stay as they are. Arrays of more than 2 GiB.
soak:
	@python="$(PYTHON)"
	"$$python" -m pytest tests/faults/test_soak.py tests/faults/large_transfers.py --soak $(SOAK) --timeout 7200

# The compiled core under AddressSanitizer and UndefinedBehaviorSanitizer, but for damaged files, in which HDF5 itself
# reads past its buffers (CONTRIBUTING.md).
sanitize:
	@python="$(PYTHON)"
	flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
	CFLAGS="$$flags" "$$python" setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	preload="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)"
	cd build/sanitize
	PYTHONPATH=$$PWD/lib LD_PRELOAD="$$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    "$$python" -P -m pytest ../../tests/below ../../tests/above -m 'parallel[1]' -p no:cacheprovider \
	    --ignore ../../tests/below/test_damage.py

# Firedrake's tests of checkpointing as they are in CHECKOUT: without localckpt, then on it with each engine.
# PETSc's log (-log_view) counts what localckpt stored and read on the busiest rank.
conformance:
	@python="$(PYTHON)"
	export PYTHONPATH=$$PWD
	logs=$$PWD/build/conformance result=0
	rm -rf $$logs && mkdir -p $$logs
	cd $(CHECKOUT)/tests/firedrake
	for n in 1 3; do for engine in none direct viewer; do
	    log=$$logs/$$engine-$$n
	    export PETSC_OPTIONS="-localckpt_engine $$engine -log_view :$$log.events"
	    set -- -m pytest $(FIREDRAKE_TESTS) -rfE --color=no -p no:cacheprovider -m 'parallel[match]'
	    [ $$engine = none ] || set -- -m localckpt run "$$@"
	    set -- "$$python" "$$@"
	    [ $$n = 1 ] || set -- mpiexec -n $$n "$$@"
	    timeout --foreground -k 10 1800 "$$@" </dev/null >$$log.log 2>&1 || true
	    echo "== $$n rank(s), engine $$engine: $$(grep -oE '[0-9]+ (passed|failed|error).* in [0-9.]+s' $$log.log | tail -n 1)"
	    grep -oE '^(FAILED|ERROR) [^ ]+' $$log.log | sort -u >$$log.failed || true
	    if [ $$engine != none ]; then
	        awk '/^localckpt(Save|Load) / {print $$1, $$2}' $$log.events | tee $$log.counts
	        grep -vxFf $$logs/none-$$n.failed $$log.failed | grep -v $(DIFFER) >$$log.unexpected || true
	        sed -n '/$(DIFFER)/s/^/expected: /p' $$log.failed
	        sed 's/^/not expected: /' $$log.unexpected
	        grep -q ' passed' $$log.log && [ $$(wc -l <$$log.counts) = 2 ] && [ ! -s $$log.unexpected ] || result=1
	    else
	        sed 's/^/fails without localckpt, too: /' $$log.failed
	    fi
	done; done
	[ $$result = 0 ] || echo "not as it should be: see $$logs"
	exit $$result

# The compiled core, compiled anew for other PETScs and Pythons.
matrix:
	@scripts/matrix

matrix-long:
	@scripts/matrix long

python:
	@python="$(PYTHON)"
	echo "$$python"
