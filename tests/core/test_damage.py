"""Damaged files: every damage is an error, or changes nothing of what is read."""

import pytest

# How often the 4,000 flipped bits of the default run.
MORE = 1

DAMAGE = """
import random, resource
from localckpt import StorageError
from localckpt._rows import Pool

good, bad, kind = sys.argv[1:]
draw = np.random.default_rng(1)
scalars = lambda *shape: draw.random(shape).astype(PETSc.ScalarType)
data = {
    "vec": scalars(24), "blocks": scalars(8, 3), "single": draw.random((5, 4)).astype("f4"),
    "integers": np.arange(-20, 20, dtype="i2"), "complex": (draw.random(7) + 1j).astype("c8"),
    "a/b": np.arange(30), "other size": scalars(11), "empty": np.empty(0, "u1"), "same size": scalars(24),
}
steps = draw.random((3, 12))
with VecFile(comm, good, "w") as file:
    for name, array in data.items():
        file.write_array(name, array)
    pool = Pool(file.descriptor, False)
    first, stride, count, checksums = file.create_rows("steps", 3, steps[0], checksums=True)
    pool.add(first, stride, count, checksums)
    for step in steps:
        pool.claim().write(step)
content = open(good, "rb").read()
assert 10_000 < len(content) < 25_000

def shorter(n):
    return content[:n]


def flipped(*bits):
    damaged = bytearray(content)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return damaged


def outcomes():
    '''How each call ended, on one file; other names, sizes or numbers than were stored end the program.'''
    def kept(call, expected):
        try:
            result = call()
        except StorageError as exc:
            return type(exc).__name__
        assert result == expected, (result, expected)
        return "right"

    def read(name, like, **timestep):
        back = np.full_like(like, 77)
        file.read_array(name, back, **timestep)
        return back.tobytes()

    with VecFile(comm, bad) as file:
        for _ in range(2):  # what was refused once is not to be had the second time
            for name, array in data.items():
                yield kept(lambda: file.sizes(name), (array.size, array.size))
                yield kept(lambda: read(name, array), array.tobytes())
            for i, step in enumerate(steps):
                yield kept(lambda: read("steps", step, timestep=i), step.tobytes())
            yield kept(file.names, sorted([*data, "steps"]))


# On MPICH PETSc dies after about 2,000 files that it cannot open.
every = 12 if MPI.Get_library_version().startswith("MPICH") else 1
bits, n = random.Random(1), 8 * len(content)
damages = {
    "shorter": ((shorter, n) for n in range(0, len(content), every)),
    "flipped": ((flipped, bit) for bit in bits.sample(range(n), min(n, 4000 * MORE))),
    "riddled": ((flipped, *bits.choices(range(n), k=8)) for _ in range(1000 * MORE)),
}[kind]
resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
seen = set()
for damage, *where in damages:
    print(damage.__name__, *where, flush=True)
    if os.path.exists(bad):
        os.remove(bad)  # ext4 brings a file that is written over to the disk at once
    with open(bad, "xb") as file:
        file.write(damage(*where))
    # Five seconds of CPU time for each, then SIGXCPU.
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 6, resource.RLIM_INFINITY))
    try:
        seen.update(outcomes())
    except StorageError as exc:
        seen.add(type(exc).__name__)
print(*sorted(seen), flush=True)
os._exit(0)  # HDF5 may say at exit what it lost in the damaged files
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("shorter", "NotHDF5Error"),
        ("flipped", "ChecksumError MissingDatasetError NotHDF5Error TransferError right"),
        ("riddled", "ChecksumError MissingDatasetError NotHDF5Error TransferError right"),
    ],
)
def test_damaged_file_is_an_error_or_read_as_it_was_stored(tmp_path, run_script, kind, expected):
    result = run_script(
        f"MORE = {MORE}\n" + DAMAGE, tmp_path / "good.h5", tmp_path / "bad.h5", kind, seconds=250 * MORE
    )
    *_, last, seen = ["", *result.stdout.splitlines()]
    assert (result.returncode, result.stderr) == (0, ""), f"{seen}: {result.stderr}"
    assert seen == expected, f"after {last}"
