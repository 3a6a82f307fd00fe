"""Disks that only their own node can see.

A simulated node is a mount and a host name of its own: its ranks see a disk that no others see,
at a path that all have.
"""

import json
import subprocess
from pathlib import Path

import pytest

# One run for each division of the ranks among nodes tries all layouts: starting takes longer than they do.
NODES = {"3 ranks and 1": (3, 1), "1, 1 and 1": (1, 1, 1)}

RUN = """
sys.path.insert(0, sys.argv[1])
disk, shared = sys.argv[2:]
import gc
import json
import socket
from burgers import SCALES, bare_tape, record_on_disk, reference, square, sweep
from firedrake.adjoint import get_working_tape
from localckpt import node_comm
from localckpt.adjoint import checkpointable_mesh, enable_disk_checkpointing

node, pair, across = node_comm(comm), node_comm(comm, 2), comm.Split(comm.rank % 2)


def solve(**arguments):
    '''Directories on this rank's disk, this rank's engine and how far its gradient is from one without a schedule.'''
    directories = set()
    functional = record_on_disk(in_step=lambda step: directories.update(os.listdir(disk)), **arguments)
    found = sweep(functional, SCALES[0])
    engine = get_working_tape()._package_data["firedrake"]._functions.store.current_file.engine
    return len(directories), type(engine).__name__, np.abs(found - reference()[0]).max()


def mesh():
    enable_disk_checkpointing(dirname=disk)
    checkpointable_mesh(square())


def outcome(call, **arguments):
    '''On every rank: what it returns, or how it fails; and what is then left on the disks.'''
    with bare_tape():
        try:
            result = call(**arguments)
        except Exception as exc:
            result = type(exc).__name__, str(exc)
    gc.collect()
    comm.barrier()
    left = os.listdir(disk)
    return comm.allgather([result, left])


found = {
    "nodes": comm.allgather([socket.gethostname(), node.size, node.rank, pair.size]),
    "a file per rank": outcome(solve, checkpoint_dir=disk),
    "a file per node": outcome(solve, checkpoint_comm=node, checkpoint_dir=disk),
    "a file per pair": outcome(solve, checkpoint_comm=pair, checkpoint_dir=disk),
    "a file per pair, viewer": outcome(solve, checkpoint_comm=pair, checkpoint_dir=disk, engine="viewer"),
    "shared": outcome(solve, checkpoint_comm=comm, checkpoint_dir=shared),
    "shared in the end": outcome(solve, checkpoint_comm=comm, checkpoint_dir=[disk, shared]),
    "world": outcome(solve, checkpoint_comm=comm, checkpoint_dir=disk),
    "across": outcome(solve, checkpoint_comm=across, checkpoint_dir=disk),
    "mesh": outcome(mesh),
}
if comm.rank == 0:
    print(json.dumps(found))
"""


@pytest.fixture
def start_nodes(tmp_path):
    """start_nodes(ranks of each node): a directory, and the beginning of a command whose ranks see it on their node."""
    disk = tmp_path / "disk"
    disk.mkdir()
    holders = []

    def start(ranks):
        command = 'mount -t tmpfs -o size=64m none "$0" && hostname "$1" && echo there && exec cat'
        for number in range(len(ranks)):
            holders.append(
                subprocess.Popen(
                    ["unshare", "--mount", "--uts", "sh", "-c", command, disk, f"node{number}"],
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            if holders[-1].stdout.readline() != "there\n":
                pytest.skip(f"no namespaces for simulated nodes here: {holders[-1].stderr.read().strip()}")
        of_ranks = [str(holder.pid) for holder, n in zip(holders, ranks) for _ in range(n)]
        enter = (
            f'of=({" ".join(of_ranks)}); exec nsenter -m -u -w -t ${{of[${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}]}} "$@"'
        )
        return disk, ["mpiexec", "-n", str(len(of_ranks)), "bash", "-c", enter, "-"]

    yield start
    for holder in holders:
        holder.communicate()


@pytest.fixture(scope="module")
def known():
    """Outcomes of runs that have been made."""
    return {}


@pytest.fixture(params=NODES)
def outcomes(request, known, start_nodes, run_script, tmp_path):
    """What came out of each layout, on each rank, and the division of the ranks."""
    if request.param not in known:
        disk, before = start_nodes(NODES[request.param])
        shared = tmp_path / "shared"
        shared.mkdir()
        done = run_script(RUN, Path(__file__).parent, disk, shared, before=before, seconds=240)
        assert done.returncode == 0, done.stderr[-4000:]
        known[request.param] = json.loads(done.stdout)
    return known[request.param], NODES[request.param]


def test_node_comm_is_of_the_ranks_of_a_node(outcomes):
    found, nodes = outcomes
    assert [[host, size, rank] for host, size, rank, _ in found["nodes"]] == [
        [f"node{number}", size, rank] for number, size in enumerate(nodes) for rank in range(size)
    ]


def test_node_comm_of_two_ranks_leaves_the_last_one_alone(outcomes):
    found, nodes = outcomes
    assert [pair for *_, pair in found["nodes"]] == [
        min(2, size - rank // 2 * 2) for size in nodes for rank in range(size)
    ]


@pytest.mark.parametrize(
    "layout, files",
    [
        ("a file per rank", lambda ranks: ranks),
        ("a file per node", lambda ranks: 1),
        ("a file per pair", lambda ranks: (ranks + 1) // 2),
        ("a file per pair, viewer", lambda ranks: (ranks + 1) // 2),
    ],
)
def test_layout_has_its_files_on_the_disk_of_each_node(outcomes, layout, files):
    found, nodes = outcomes
    assert [result[0] for result, _ in found[layout]] == [files(size) for size in nodes for _ in range(size)]


@pytest.mark.parametrize(
    "layout",
    ["a file per rank", "a file per node", "a file per pair", "a file per pair, viewer", "shared", "shared in the end"],
)
def test_layout_gives_the_gradient_of_a_bare_tape(outcomes, layout):
    found, _ = outcomes
    assert max(off for (_, _, off), _ in found[layout]) < 1e-9


@pytest.mark.parametrize("layout, engine", [("a file per node", "DirectEngine"), ("shared", "ViewerEngine")])
def test_only_ranks_of_one_node_write_to_a_file_without_mpi(outcomes, layout, engine):
    found, _ = outcomes
    assert {engine for (_, engine, _), _ in found[layout]} == {engine}


@pytest.mark.parametrize("layout", ["world", "across", "mesh"])
def test_a_file_of_ranks_that_do_not_share_the_directory_is_one_error_on_every_rank(outcomes, layout):
    found, _ = outcomes
    assert {kind for (kind, _), _ in found[layout]} == {"OSError"}
    assert len({sentence for (_, sentence), _ in found[layout]}) == 1


@pytest.mark.parametrize("layout", ["world", "mesh"])
def test_the_error_names_the_ranks_that_do_not_see_the_directory(outcomes, layout):
    found, nodes = outcomes
    ranks = [f"rank {rank} ({host})" for rank, (host, *_) in enumerate(found["nodes"]) if host != "node0"]
    assert f"is not the same directory on {', '.join(ranks)}: name" in found[layout][0][0][1]


def test_ranks_in_the_error_are_those_of_the_file(outcomes):
    found, nodes = outcomes
    assert f"is not the same directory on rank 1 (node{len(nodes) - 1}): name" in found["across"][0][0][1]


@pytest.mark.parametrize("layout", ["a file per pair", "world", "across", "mesh"])
def test_no_directory_is_left(outcomes, layout):
    found, _ = outcomes
    assert [left for _, left in found[layout]] == [[]] * len(found[layout])
