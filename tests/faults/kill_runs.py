"""Kill runs that resume, at random, and compare how they end with runs that were not interrupted (make kill).

    python tests/faults/kill_runs.py DIRECTORY [SECONDS] [PATTERN]

Results go to DIRECTORY/results, a line of JSON for each run; runs that are there are not made again. A run is killed up
to five times: its processes by SIGKILL, all at once or one of them; by SIGKILL while a record is being written; by
SIGTERM or SIGUSR1 to all of them; or by the end of its time. Exits with 1 if a run did not end as it should.
"""

import fnmatch
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil

from localckpt.storage.journal_entries import read_entries

SCRIPT = Path(__file__).with_name("resumable.py")
PROBLEMS = "burgers", "convection"
OPTIMISERS = "scipy", "lmvm", "blmvm", *(["rol"] if find_spec("ROL") else []), "hand"  # no ROL for Python 3.14
SCHEDULES = "none", "disk", "revolve", "multistage", "hrevolve"
LEVELS = {
    "evaluations": (),
    "recording": ("--resume-recording",),
    "sweeps": ("--resume-sweeps", "--resume-every", "0"),
    "paced": ("--resume-sweeps", "--resume-every", "200ms"),
}
RANKS = 1, 2, 3
ENDS = "kill all", "kill one", "kill in a commit", "SIGTERM", "SIGUSR1", "end of time"
LIMIT = 300  # seconds for a job: one that takes longer hangs
AGAIN = 75
SIGNALLED = 128 + signal.SIGTERM, 128 + signal.SIGUSR1


def cases():
    """Runs such that each pair of values of two properties is in one of them, more or less."""
    every = list(itertools.product(PROBLEMS, OPTIMISERS, SCHEDULES, LEVELS, RANKS))
    random.Random(0).shuffle(every)
    missing = {pair for case in every for pair in itertools.combinations(enumerate(case), 2)}
    for case in every:
        covered = set(itertools.combinations(enumerate(case), 2)) & missing
        if covered:
            missing -= covered
            yield case


def start(case, directory, result, options=(), pace=0.0, before=()):
    """Start a job of a run, or the uninterrupted run of a case, as the last arguments of the command `before`."""
    problem, optimiser, schedule, level, ranks = case
    command = [sys.executable, "-m", "localckpt", "run", "--resume", directory, *LEVELS[level], *options]
    command += [SCRIPT, problem, optimiser, schedule, result, pace]
    return subprocess.Popen(
        [*before, "mpiexec", "-n", str(ranks), *map(str, command)],
        stdout=open(f"{result}.log", "a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "MPIEXEC_TIMEOUT": str(LIMIT)},
    )


def ranks_of(job):
    """The processes of its ranks, and not the compilers that they start."""
    try:
        return [process for process in psutil.Process(job.pid).children() if "python" in process.name()]
    except psutil.NoSuchProcess:
        return []


def jobs_of(directory):
    """How many have begun to resume in a directory."""
    try:
        return sum(entry["kind"] == "job" for entry in read_entries(directory))
    except OSError:
        return 0


def interrupt(job, end, chance, directory, begin, jobs):
    """Wait for a random instant after the job has begun to resume, and end it in that way."""
    while jobs_of(directory) == jobs and job.poll() is None:  # it imports Firedrake
        time.sleep(0.01)
    wait_until = time.monotonic() + chance.uniform(0.0, 1.2 * begin)
    size = nbytes_of_arrays(directory)
    while job.poll() is None:
        if end == "kill in a commit":
            if time.monotonic() > wait_until - begin and nbytes_of_arrays(directory) != size:
                break
            size = nbytes_of_arrays(directory)
            time.sleep(0.0002)
        elif time.monotonic() > wait_until:
            break
        else:
            time.sleep(0.005)
    processes = ranks_of(job)
    if end == "SIGTERM" or end == "SIGUSR1":
        for process in processes:
            with_suppressed(lambda process=process: process.send_signal(getattr(signal, end)))
    elif end == "kill one" and processes:
        with_suppressed(chance.choice(processes).kill)
    elif end.startswith("kill"):
        for process in processes:
            with_suppressed(process.kill)


def with_suppressed(call):
    try:
        call()
    except psutil.NoSuchProcess:
        pass


def nbytes_of_arrays(directory):
    return sum(path.stat().st_size for path in directory.rglob("arrays-*"))


def wait(job):
    """The exit status of a job, whose processes are gone then."""
    try:
        return job.wait(LIMIT + 30)
    finally:
        try:
            os.killpg(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def run(case, seed, where, kills=5, pace=0.02):
    """Kill a run up to so many times, then let it end: the line for the results."""
    name = "-".join(map(str, case))
    chance = random.Random(f"{name}-{seed}")
    whole = where / f"{name}.npy"
    if not whole.exists():
        begin = time.monotonic()
        job = start(case, where / f"{name}-whole", whole, pace=pace)
        if wait(job):
            raise SystemExit(f"the uninterrupted run failed: {whole}.log")
        (where / f"{name}.seconds").write_text(str(time.monotonic() - begin))
    seconds = float((where / f"{name}.seconds").read_text())
    directory, result = where / f"{name}-{seed}", where / f"{name}-{seed}.npy"
    shutil.rmtree(directory, ignore_errors=True)
    Path(f"{result}.solves").unlink(missing_ok=True)
    ends, statuses = [], []
    for _ in range(kills):
        end = chance.choice(ENDS)
        options = ["--walltime", f"{chance.uniform(0.5, 1.0) * seconds + 5:.1f}"] if end == "end of time" else []
        jobs = jobs_of(directory)
        job = start(case, directory, result, options, pace)
        if end != "end of time":
            interrupt(job, end, chance, directory, seconds / 2, jobs)
        ends.append(end)
        statuses.append(wait(job))
        if statuses[-1] == 0:
            break
    if statuses[-1:] != [0]:
        statuses.append(wait(start(case, directory, result, pace=0)))
    line = {"case": name, "seed": seed, "ends": ends, "statuses": statuses, "kills": sum(s != 0 for s in statuses)}
    line["solves"], line["solves of whole"] = solves_of(result), solves_of(whole)
    if statuses[-1] == 0:
        found, expected = np.load(result), np.load(whole)
        line["same bits"] = bool(np.array_equal(found, expected))
        line["distance"] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    line["right"] = statuses[-1] == 0 and (line["same bits"] or (case[-1] > 1 and line["distance"] < 1e-8))
    # A signal may come when Python ends and has given the signals back: the job is done then.
    wrong = [status for end, status in zip(ends, statuses) if end[0] != "k" and status not in (0, AGAIN, *SIGNALLED)]
    line["right"] = line["right"] and not wrong
    if line["right"]:
        shutil.rmtree(directory)
    return line


def solves_of(result):
    """How many variational solves were done by all jobs of a run, those not counted that were read."""
    characters = Path(f"{result}.solves").read_text()
    return characters.count("+") - characters.count("-")


def partitions(directory, ranks, starts=10):
    """The partitions of a mesh that so many jobs of a run have."""
    shutil.rmtree(directory, ignore_errors=True)
    command = ["mpiexec", "-n", ranks, sys.executable, "-m", "localckpt", "run", "--resume", directory]
    command.append(SCRIPT.with_name("partition.py"))
    found = []
    for _ in range(starts):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=LIMIT)
        found += re.findall("partition (.*)", done.stdout)
    return found


def chain(where):
    """The exit statuses of jobs that have a third of the time, and the start, each on a node whose disk is empty."""
    case, pace = ("burgers", "lmvm", "disk", "sweeps", 2), 3.0
    result, local = where / "chain.npy", where / "local"
    local.mkdir(exist_ok=True)
    for name in ("chain-whole", "chain"):
        shutil.rmtree(where / name, ignore_errors=True)
    begin = time.monotonic()
    if wait(start(case, where / "chain-whole", result, pace=pace)):
        raise SystemExit(f"the uninterrupted run failed: {result}.log")
    seconds = time.monotonic() - begin
    node = [
        "unshare",
        "--mount",
        "env",
        f"TMPDIR={local}",
        "sh",
        "-c",
        f'mount -t tmpfs none {local} && exec "$@"',
        "sh",
    ]
    statuses = []
    while not statuses or (statuses[-1] == AGAIN and len(statuses) < 20):
        options = ["--walltime", f"{10 + seconds / 3:.1f}"]
        statuses.append(wait(start(case, where / "chain", result, options, pace, node)))
    return statuses


def main(where, seconds="3600", pattern="*"):
    """Runs until the time is over or 200 kills are done."""
    where = Path(where).absolute()
    where.mkdir(parents=True, exist_ok=True)
    for ranks in (4, 8):
        if fnmatch.fnmatch(f"partition-{ranks}", pattern):
            found = partitions(where / f"partition-{ranks}", ranks)
            print(f"{ranks} ranks: {len(found)} starts, {len(set(found))} partition", flush=True)
            if len(found) != 10 or len(set(found)) != 1:
                return True
    if fnmatch.fnmatch("chain", pattern):
        statuses = chain(where)
        print(f"chain of jobs with a third of the time: exit statuses {statuses}", flush=True)
        if statuses[-1] != 0 or len(statuses) < 3:
            return True
    results = where / "results"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    end = time.monotonic() + float(seconds)
    for seed, case in itertools.product(range(100), list(cases())):
        name = "-".join(map(str, case))
        known = {(line["case"], line["seed"]) for line in done}
        if (name, seed) in known or not fnmatch.fnmatch(name, pattern):
            continue
        if time.monotonic() > end or sum(line["kills"] for line in done) >= 200:
            break
        done.append(run(case, seed, where))
        with results.open("a") as file:
            print(json.dumps(done[-1]), file=file)
        print(json.dumps(done[-1]), flush=True)
    one = [line for line in done if line["case"].endswith("-1")]
    print(
        f"{len(done)} runs, killed {sum(line['kills'] for line in done)} times: "
        f"{sum(line['right'] for line in done)} ended as uninterrupted ones; on one rank "
        f"{sum(line.get('same bits', False) for line in one)} of {len(one)} with the same bits; largest relative "
        f"distance on several {max((line.get('distance', 1.0) for line in done), default=0.0):.1e}"
    )
    for level in LEVELS:
        runs = [line for line in done if line["case"].split("-")[3] == level]
        solves, whole, kills = (sum(line[name] for line in runs) for name in ("solves", "solves of whole", "kills"))
        print(f"{level}: {len(runs)} runs, {kills} kills; {solves} solves, {whole} if not interrupted")
    return not all(line["right"] for line in done)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
