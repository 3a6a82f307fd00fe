# make demo | test | lint | docs | soak | sanitize | python.  Each first installs what is missing (scripts/install-stack).
# To use an environment of your own instead: make test PYTHON=/path/to/python

PYTHON = $$(scripts/install-stack)
DEMO = examples/burgers.py --compare
TESTS = tests
RANKS = 1 2 3
SOAK = 500

SHELL = bash
.SHELLFLAGS = -euo pipefail -c
.ONESHELL:
.PHONY: demo test lint docs soak sanitize python
unexport PETSC_DIR PETSC_ARCH PYTHONPATH PYTHONHOME  # of another stack than this one

export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export OMPI_MCA_rmaps_base_oversubscribe = 1
export OMP_NUM_THREADS = 1

demo:
	@python="$(PYTHON)"
	"$$python" $(DEMO)

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

# Hundreds of optimisation iterations: memory, descriptors and disk use stay as they are.
soak:
	@python="$(PYTHON)"
	"$$python" -m pytest tests/faults/test_soak.py --soak $(SOAK) --timeout 7200

# The compiled core under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize:
	@python="$(PYTHON)"
	flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
	CFLAGS="$$flags" "$$python" setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	preload="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)"
	cd build/sanitize
	PYTHONPATH=$$PWD/lib LD_PRELOAD="$$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    "$$python" -P -m pytest ../../tests/below ../../tests/above -m 'parallel[1]' -p no:cacheprovider

python:
	@python="$(PYTHON)"
	echo "$$python"
