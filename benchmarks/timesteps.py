"""Resident memory and live PyOP2 Dats after so many timesteps, for each way of checkpointing.

    python benchmarks/timesteps.py            # a table, each number from a process of its own
"""

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys

KINDS = ("localckpt", "checkpoint_comm", "memory")


def measure(kind, steps, cells):
    import psutil
    from problems import advection, square
    from pyop2 import op2

    iteration = advection(kind, square(cells), steps)
    iteration()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps is not what the run needs
    process = psutil.Process().memory_info()
    dats = sum(isinstance(thing, op2.Dat) for thing in gc.get_objects())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
    print(json.dumps({"rss": process.rss/1e6, "peak": peak/1e6, "dats": dats}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument("--cells", type=int, default=60)
    options, sys.argv[1:] = parser.parse_known_args()
    if options.measure:
        return measure(options.measure[0], int(options.measure[1]), options.cells)
    print(f"{'':16}" + "".join(f"{steps:>24} steps" for steps in options.steps))
    for kind in KINDS:
        line = f"{kind:16}"
        for steps in options.steps:
            run = subprocess.run([sys.executable, __file__, "--measure", kind, str(steps),
                                  f"--cells={options.cells}"], capture_output=True, text=True, timeout=3600)
            found = json.loads(run.stdout.strip().splitlines()[-1])
            line += f"{found['rss']:9.0f} MB, peak {found['peak']:4.0f}, {found['dats']:4} Dats"
        print(line, flush=True)


if __name__ == "__main__":
    main()
