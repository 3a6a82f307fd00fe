"""Tables and pictures of what the benchmarks have written.

python benchmarks/report.py [RESULTS]    # report.md and *.svg beside the JSON files
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

LABELS = {
    "localckpt": "localckpt",
    "left alone": "localckpt, collector left alone",
    "viewer": "localckpt, viewer engine",
    "checkpoint_comm": "Firedrake, checkpoint_comm",
    "shared": "Firedrake, shared CheckpointFile",
    "held viewer": "petsc4py HDF5 viewer, held open",
    "h5py": "h5py",
    "binary viewer": "PETSc binary viewer",
    "memory": "copy in memory",
    "pwrite": "limit: pwrite, pread",
    "memcpy": "limit: memcpy",
    "hash": "limit: hash",
    "single": "localckpt, single precision",
}
COLOURS = dict(zip(LABELS, plt.colormaps["tab10"].colors)) | {
    "pwrite": "black",
    "memcpy": "grey",
    "hash": "silver",
    "memory": "dimgrey",
    "single": "tab:cyan",
}
plt.rcParams.update(
    {
        "svg.hashsalt": "localckpt",
        "svg.fonttype": "none",  # letters, not their outlines: files of half the size
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "figure.constrained_layout.use": True,
        "legend.fontsize": 7,
    }
)


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results")
    files = sorted(path for path in folder.glob("*.json") if path.name != "counts.json")  # not of pytest-benchmark
    if not files:
        sys.exit(f"no results in {folder}")
    found = defaultdict(list)  # by workload, the first word of the file's name
    machines = defaultdict(list)
    for path in files:
        data = json.loads(path.read_text())
        machines[machine(data)].append(path.stem)
        for benchmark in data["benchmarks"]:
            if "contestant" in benchmark["extra_info"]:
                found[path.stem.rpartition("-")[0]].append({**benchmark["extra_info"], **benchmark["stats"]})
    lines = ["# Benchmarks", ""]
    for text, names in machines.items():
        lines += [f"{', '.join(names)}: {text}" if len(machines) > 1 else text, ""]
    lines += [
        "Medians, of the slowest rank in each round. Ranks marked * are more than the machine has cores. "
        "What is blank was not run.",
        "",
        *targets(found),
    ]
    for workload, write in (
        ("iteration", iterations),
        ("processes", processes),
        ("mechanisms", mechanisms),
        ("save-restore", saves),
        ("tape", tapes),
        ("timesteps", timesteps),
        ("garbage", garbage),
        ("cgroup", cgroups),
        ("plan", plans),
        ("precision", precisions),
        ("resume", resumed),
        ("trajectory", trajectories),
    ):
        if found[workload]:
            lines += write(found[workload], folder)
    (folder / "report.md").write_text("\n".join(lines).rstrip("\n") + "\n")
    print("\n".join(lines))


def machine(data):
    info, commit = data["machine_info"], data["commit_info"]
    versions = ", ".join(f"{name} {number}" for name, number in info.get("versions", {}).items())
    return (
        f"{info['cpu'].get('brand_raw', info['machine'])}, {info['cpu'].get('count', '?')} cores, "
        f"{info.get('memory', 0) / 2**30:.0f} GiB, {info['system']} {info['release']}, Python "
        f"{info['python_version']}, {versions}; commit {commit['id'][:10]}"
        f"{', changed' if commit.get('dirty') else ''}; {data['datetime'][:10]}."
    )


def targets(found):
    """What was wanted, and what was found."""
    rows = []

    def row(what, wanted, number, limit, text=None):
        rows.append(f"| {what} | {wanted} | {text or f'{number:.2f}'} | {'yes' if number <= limit else 'no'} |")

    for problem, limit in (("advection, 60k dofs", 1.05), ("advection, 540k dofs", 0.97)):
        for n in values(found["iteration"], "ranks"):
            b = pick(found["iteration"], problem=problem, ranks=n, contestant="localckpt")
            if b:
                own = pick(found["processes"], problem=problem, ranks=n) or b
                row(f"iteration ÷ memory, {problem}, {n} rank(s)", f"≤ {limit}", own["ratio"], limit, ratio(own, 3))
                theirs = pick(found["iteration"], problem=problem, ranks=n, contestant="checkpoint_comm")
                if theirs:
                    times = theirs["store and restore"] / b["store and restore"]
                    row(
                        f"`checkpoint_comm` ÷ localckpt, seconds in store and restore, {problem}, {n} rank(s)",
                        "≥ 15",
                        -times,
                        -15,
                        f"{times:.1f}",
                    )
    for n, dofs in values(found["save-restore"], "ranks", "dofs"):
        here = {
            (b["operation"], b["contestant"]): b["median"]
            for b in found["save-restore"]
            if (b["ranks"], b["dofs"], b["sharing"]) == (n, dofs, "rank") and b["filesystem"] != "tmpfs"
        }
        if dofs == 1000:
            for operation, factor in (("save", 100), ("restore", 15)):
                mine, theirs = here.get((operation, "localckpt")), here.get((operation, "checkpoint_comm"))
                if mine and theirs:
                    row(
                        f"`checkpoint_comm` ÷ localckpt, one {operation}, 1,000 dofs, {n} rank(s)",
                        f"≥ {factor}",
                        -theirs / mine,
                        -factor,
                        f"{theirs / mine:.0f}",
                    )
        if dofs >= 10**6 and ("save", "hash") in here:
            size = f"{8e-6 * dofs:.0f} MB, {n} rank(s)"
            row(
                f"save of new bytes ÷ (hash + pwrite), {size}",
                "≤ 1.1",
                here["save", "localckpt"] / (here["save", "hash"] + here["save", "pwrite"]),
                1.1,
            )
            row(f"save of known bytes ÷ hash, {size}", "≤ 1.1", here["again", "localckpt"] / here["again", "hash"], 1.1)
            row(
                f"restore, verify and read ÷ pread and read, {size}",
                "≤ 1.1",
                here["restore", "localckpt"] / here["restore", "pwrite"],
                1.1,
            )
    for b in found["cgroup"]:
        if b["contestant"] != "localckpt":
            continue
        row(f"{b['sweep']} sweep in a memory cgroup ÷ the larger of memory and disk", "≤ 1.15", b["ratio"], 1.15)
        single = pick(found["cgroup"], contestant="single", sweep=b["sweep"])
        if single and b["disk"] > b["memory"]:  # it waits for the disk
            share = single["median"] / b["median"]
            row(f"{b['sweep']} sweep in a memory cgroup, single ÷ exact", "≤ 0.65", share, 0.65)
    for b in found["precision"]:
        if "ratio" in b and b["problem"] == "advection, 540k dofs":
            what = f"iteration, single ÷ exact, {b['problem']}, {b['ranks']} rank(s)"
            row(what, "≤ 1.03", b["ratio"], 1.03, ratio(b, 3))
    for b in found["trajectory"]:
        wanted = {"512 dofs": [("basic", 0.5)], "32768 dofs": [("basic", 0.2), ("memory", 1.1)]}.get(b["problem"], [])
        for kind, limit in wanted if b["ranks"] == 2 else []:
            what = f"TSTrajectory, set + get ÷ `{kind}`, {b['problem']}, {b['ranks']} rank(s)"
            row(what, f"≤ {limit}", b["ratios"][kind], limit)
        if b["problem"] == "Crank-Nicolson":
            row(f"TSTrajectory, bytes ÷ `basic`, Crank-Nicolson, {b['ranks']} rank(s)", "≤ 0.55", b["ratio"], 0.55)
    ours = {b["steps"]: b["resident"] for b in found["timesteps"] if b["contestant"] == "localckpt"}
    if 50 in ours and 800 in ours:
        row("resident memory after 800 timesteps ÷ after 50", "≤ 1.05", ours[800] / ours[50], 1.05)
    head = [
        "## Wanted and found",
        "",
        "With quartiles where there are any. Iterations on 1 and 2 ranks are those in processes of their own.",
        "",
        "| | wanted | found | met |",
        "|---|---|---|---|",
    ]
    return [*head, *rows, ""] if rows else []


def ratio(b, digits=2):
    """With its quartiles."""
    return f"{b['ratio']:.{digits}f} ({b['spread'][0]:.2f}–{b['spread'][1]:.2f})"


def table(rows, columns, cell, corner=""):
    """A Markdown table; `cell(row, column)` is a string or None."""
    lines = ["| " + " | ".join([corner, *map(str, columns)]) + " |", "|" + "---|" * (len(columns) + 1)]
    for row in rows:
        cells = [cell(row, column) for column in columns]
        if any(cells):
            lines.append("| " + " | ".join([LABELS.get(row, str(row)), *(text or "" for text in cells)]) + " |")
    return [*lines, ""]


def values(found, *names):
    """The different values of something, smallest first; numbers and words are not mixed."""
    return sorted({tuple(b[name] for name in names) if len(names) > 1 else b[names[0]] for b in found})


def pick(found, **wanted):
    return next((b for b in found if all(b.get(name) == value for name, value in wanted.items())), None)


def ranks(found, n):
    return f"{n}*" if pick(found, ranks=n)["oversubscribed"] else str(n)


def seconds(value, digits=3):
    """In seconds, milliseconds or microseconds."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1 or unit == "µs":
            return f"{value * factor:.{digits}g} {unit}" if value * factor < 1000 else f"{value * factor:.0f} {unit}"


def legend(axes):
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def iterations(found, folder):
    problems = list(dict.fromkeys(b["problem"] for b in found))
    numbers = values(found, "ranks")
    lines = [
        "## Whole iterations",
        "",
        "Functional and gradient, divided by the same with memory checkpoints: median "
        "and quartiles; and seconds in the tape's store and restore. All in one process, one after the other.",
        "",
    ]
    for problem in problems:

        def cell(kind, n, problem=problem):
            b = pick(found, problem=problem, ranks=n, contestant=kind)
            return b and f"{ratio(b)}, {b['store and restore']:.3f} s"

        lines += table(LABELS, numbers, lambda kind, n: cell(kind, n), f"{problem}; ranks")
    ours = [b for b in found if b["contestant"] == "localckpt"]
    lines += [
        "Bytes that the tape saves in an iteration, those of them that differ, and those that localckpt wrote "
        "(less where a coefficient is still there from the iteration before), MB:",
        "",
    ]
    lines += table(
        problems,
        ["saved", "differ", "written"],
        lambda problem, what: next(
            f"{b[{'differ': 'distinct'}.get(what, what)] / 1e6:.1f}" for b in ours if b["problem"] == problem
        ),
    )
    lines += ["Page faults on rank 0 in an iteration, with localckpt and with memory checkpoints beside it:", ""]
    lines += table(
        problems,
        numbers,
        lambda problem, n: next(
            (
                f"{b['faults']:.0f}, {b['faults of memory']:.0f}"
                for b in ours
                if (b["problem"], b["ranks"]) == (problem, n)
            ),
            None,
        ),
        "ranks",
    )
    figure, axes = plt.subplots(figsize=(8, 3.4))
    kinds = [kind for kind in LABELS if pick(found, contestant=kind)]
    for i, kind in enumerate(kinds):
        bars = [
            (p + i / (len(kinds) + 1), b["ratio"])
            for p, problem in enumerate(problems)
            for b in [pick(found, problem=problem, ranks=numbers[0], contestant=kind)]
            if b
        ]
        axes.bar(*zip(*bars), width=1 / (len(kinds) + 1), color=COLOURS[kind], label=LABELS[kind], align="edge")
    axes.axhline(1, color="black", linewidth=1)
    axes.set(
        xticks=[p + 0.4 for p in range(len(problems))],
        ylabel="iteration ÷ the same in memory",
        title=f"{ranks(found, numbers[0])} rank(s)",
    )
    axes.set_xticklabels([problem.replace(", ", "\n") for problem in problems], fontsize=7)
    legend(axes)
    return lines + save(figure, folder, "iteration")


def processes(found, folder):
    lines = [
        "## In processes of their own",
        "",
        "The same in processes with nothing but these two tapes, smallest "
        "ratio first: ratio, with the tape that was made first (m: memory, l: localckpt); seconds with memory "
        "checkpoints and with localckpt; page faults in an iteration with each.",
        "",
    ]
    columns = {
        f"{problem}, {n} rank(s)": sorted(
            pick(found, problem=problem, ranks=n)["processes"], key=lambda process: process["ratio"]
        )
        for problem, n in values(found, "problem", "ranks")
    }

    def cell(number, column):
        one = columns[column][number]
        return (
            f"{one['ratio']:.3f} ({one['order'][0][0]}); {one['memory']:.3f}, {one['localckpt']:.3f} s; "
            f"{one['faults of memory']:.0f}, {one['faults']:.0f}"
        )

    return lines + table(range(min(map(len, columns.values()))), columns, cell)


def mechanisms(found, folder):
    lines = [
        "## What each mechanism gives",
        "",
        "An iteration without it, divided by one with all of them: median and "
        "quartiles; and seconds in the tape's store and restore. All take turns in one process.",
        "",
    ]
    columns = {
        f"{problem}, {n} rank(s)": {"problem": problem, "ranks": n} for problem, n in values(found, "problem", "ranks")
    }

    def cell(kind, column):
        b = pick(found, contestant=kind, **columns[column])
        return b and f"{ratio(b)}, {b['store and restore']:.3f} s"

    return lines + table(dict.fromkeys(b["contestant"] for b in found), columns, cell)


def saves(found, folder):
    lines = [
        "## One save, one restore",
        "",
        "Restores read all of what comes back. *again*: bytes that are stored; "
        "*restore again*: within a second; *cold*: not in the page cache.",
        "",
    ]
    where = values(found, "ranks", "filesystem", "sharing")
    for n, filesystem, sharing in where:
        here = [b for b in found if (b["ranks"], b["filesystem"], b["sharing"]) == (n, filesystem, sharing)]
        owner = {"rank": "file per rank", "group": "file per two ranks", "shared": "one file"}[sharing]
        for operation in dict.fromkeys(b["operation"] for b in here):

            def cell(kind, dofs, here=here, operation=operation):
                b = pick(here, operation=operation, dofs=dofs, contestant=kind)
                return b and seconds(b["median"])

            lines += table(
                LABELS,
                values(here, "dofs"),
                lambda kind, dofs: cell(kind, dofs),
                f"**{operation}**, {ranks(found, n)} rank(s), {filesystem}, {owner}; dofs per rank",
            )
    n, main = min(values(found, "ranks")), pick(found, operation="cold") or found[0]
    figure, both = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axes, operation in zip(both, ("save", "restore")):
        here = [
            b
            for b in found
            if b["operation"] == operation
            and b["ranks"] == n
            and b["sharing"] == "rank"
            and b["filesystem"] == main["filesystem"]
        ]
        for kind in LABELS:
            points = sorted((b["dofs"], b["bytes"] / b["median"] / 1e9) for b in here if b["contestant"] == kind)
            if points:
                axes.plot(
                    *zip(*points),
                    "--" if LABELS[kind].startswith("limit") else ".-",
                    color=COLOURS[kind],
                    label=LABELS[kind],
                )
        axes.set(xscale="log", yscale="log", xlabel="dofs per rank", title=f"{operation}, {main['filesystem']}")
    both[0].set_ylabel("GB/s for each rank")
    legend(both[1])
    return lines + save(figure, folder, "throughput")


def tapes(found, folder):
    lines = ["## A tape and nothing else", "", "For each checkpoint; the first sweeps, and later ones.", ""]
    numbers, main = values(found, "ranks"), min(b["ranks"] for b in found)
    for n in numbers:
        here = [b for b in found if b["ranks"] == n]
        for dofs, steps in values(here, "dofs", "steps"):

            def cell(kind, sweep, here=here, dofs=dofs, steps=steps):
                b = pick(here, contestant=kind, sweep=sweep, dofs=dofs, steps=steps)
                return b and seconds(b["median"] / steps)

            lines += table(
                LABELS,
                ["forward first", "forward later", "reverse first", "reverse later"],
                lambda kind, sweep: cell(kind, sweep),
                f"{dofs:,} dofs per rank, {steps} steps, {ranks(found, n)} rank(s)",
            )
    small = [b for b in found if b["ranks"] == main and b["dofs"] == min(values(found, "dofs"))]
    figure, both = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axes, sweep in zip(both, ("forward later", "reverse later")):
        for kind in LABELS:
            points = sorted(
                (b["steps"], b["median"] / b["steps"] * 1e6)
                for b in small
                if b["contestant"] == kind and b["sweep"] == sweep
            )
            if points:
                axes.plot(
                    *zip(*points),
                    "--" if LABELS[kind].startswith("limit") else ".-",
                    color=COLOURS[kind],
                    label=LABELS[kind],
                )
        axes.set(xscale="log", yscale="log", xlabel="checkpoints", title=sweep.split()[0])
    both[0].set_ylabel(f"µs for each, {small[0]['dofs']:,} dofs")
    legend(both[0 if len(both[0].lines) > len(both[1].lines) else 1])
    return lines + save(figure, folder, "checkpoints")


def timesteps(found, folder):
    lines = [
        "## Memory against timesteps",
        "",
        "Resident memory after a forward sweep, with the live PyOP2 Dats; "
        "after the reverse sweep; and the most in both, with what waits for Python's garbage collector.",
        "",
    ]

    def cell(kind, steps):
        b = pick(found, contestant=kind, steps=steps)
        return b and (
            f"{b['held'] / 1e6:.0f} MB, {b['dats']} Dats; {b['resident'] / 1e6:.0f} MB; "
            f"at most {b['peak'] / 1e6:.0f} MB"
        )

    lines += table(LABELS, values(found, "steps"), cell, "timesteps")
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for kind in LABELS:
        points = sorted((b["steps"], b["peak"] / 1e6) for b in found if b["contestant"] == kind)
        if points:
            axes.plot(*zip(*points), ".-", color=COLOURS[kind], label=LABELS[kind])
    axes.set(xlabel="timesteps", ylabel="resident memory at most, MB", ylim=0)
    legend(axes)
    return lines + save(figure, folder, "memory")


def garbage(found, folder):
    lines = [
        "## Memory of whole iterations",
        "",
        "The most anonymous memory in each iteration, one after another, MB.",
        "",
    ]
    peaks = [b for b in found if "peaks" in b]

    def cell(kind, column):
        dofs, steps = column.removesuffix(" timesteps").split(" dofs, ")
        b = pick(peaks, dofs=dofs, steps=int(steps), contestant=kind)
        return b and ", ".join(f"{peak / 1e6:.0f}" for peak in b["peaks"])

    lines += table(LABELS, [f"{dofs} dofs, {steps} timesteps" for dofs, steps in values(peaks, "dofs", "steps")], cell)
    for b in found:
        if "without" in b:
            lines += [
                f"Iterations of localckpt with the freeze, divided by those without, in turns in one process "
                f"({b['dofs']} dofs, {b['steps']} timesteps, {b['pairs']} pairs): {ratio(b, 3)}.",
                "",
            ]
    return lines


def cgroups(found, folder):
    b = found[0]
    lines = [
        "## In a memory cgroup",
        "",
        f"A sweep's {b['bytes'] / 1e6:.0f} MB of states, with a page cache of a "
        "quarter of that; divided by the larger of the same with memory checkpoints outside the cgroup and of "
        "the disk's own time for the bytes. A slow disk reads 5 MB/s here.",
        "",
    ]

    def cell(kind, way):
        b = pick(found, contestant=kind, sweep=way)
        return b and f"{b['median']:.2f} s, {b['ratio']:.2f}; {b['read'] / 1e6:.0f} MB from the disk"

    return lines + table(LABELS, dict.fromkeys(b["sweep"] for b in found), cell)


def plans(found, folder):
    runs = [b for b in found if "predicted" in b]
    prepared = [b for b in found if "prepared" in b]
    lines = [
        "## Predictions of plan",
        "",
        "An iteration as measured, as `localckpt plan` predicted it from a short run, and the quotient.",
        "",
    ]

    def predicted(problem, column):
        name, n = column
        b = pick(runs, problem=problem, contestant=name, ranks=n)
        return b and f"{seconds(b['median'])}, {seconds(b['predicted'])}: {b['ratio']:.2f}"

    for n in values(runs, "ranks"):
        names = list(dict.fromkeys(b["contestant"] for b in runs))
        problems = dict.fromkeys(b["problem"] for b in runs)
        lines += table(problems, names, lambda problem, name, n=n: predicted(problem, (name, n)), f"{n} rank(s)")
    lines += [
        "What schedules take to prepare themselves and to be walked through; and steps² × checkpoints, in parts of the "
        "largest that `localckpt plan` tries.",
        "",
    ]

    def taken(size, name):
        b = pick(prepared, prepared=size, contestant=name)
        return b and f"{seconds(b['median'])}, {b['share']:.2f}"

    names = list(dict.fromkeys(b["contestant"] for b in prepared))
    return lines + table(dict.fromkeys(b["prepared"] for b in prepared), names, taken)


def resumed(found, folder):
    lines = [
        "## Runs that resume",
        "",
        "The share of an iteration that goes into recording values and derivatives or, in parts, also the sweeps.",
        "",
    ]

    def share(problem, n):
        b = pick(found, problem=problem, ranks=n)
        return b and f"{100 * b['share']:.2f} % of {seconds(b['median'])}"

    def ratio(recorded, n):
        b = pick(found, recorded=recorded, ranks=n)
        return b and f"{seconds(b['median'])}, {b['ratio']:.2f}"

    ranks = values(found, "ranks")
    lines += table(dict.fromkeys(b["problem"] for b in found if "share" in b), ranks, share)
    lines += ["A record, and its time divided by that of a plain write and fsync of the same bytes.", ""]
    return lines + table(dict.fromkeys(b["recorded"] for b in found if "recorded" in b), ranks, ratio)


def trajectories(found, folder):
    lines = [
        "## TSAdjoint",
        "",
        "Seconds to store a step of TSSolve and to restore it for TSAdjointSolve (Runge-Kutta of order 4), with "
        "localckpt's TSTrajectory type; and divided by the same with PETSc's `basic` and `memory`.",
        "",
    ]

    def step(dofs, n):
        b = pick(found, problem=dofs, ranks=n)
        return b and f"{seconds(b['median'])}: {b['ratios']['basic']:.2f}, {b['ratios']['memory']:.2f}"

    def nbytes(method, n):
        b = pick(found, problem=method, ranks=n)
        return b and f"{b['ratio']:.2f}"

    ranks = values(found, "ranks")
    lines += table(dict.fromkeys(b["problem"] for b in found if "ratios" in b), ranks, step, "ranks")
    lines += ["Bytes on disk, divided by those of `basic`:", ""]
    return lines + table(dict.fromkeys(b["problem"] for b in found if "ratio" in b), ranks, nbytes, "ranks")


def precisions(found, folder):
    lines = [
        "## Single precision",
        "",
        "Relative difference of the gradient from that with exact checkpoints, the order of a Taylor test, and the "
        "bytes of what is rounded, divided by the same with exact checkpoints.",
        "",
    ]
    accuracy = [b for b in found if "order" in b]

    def cell(schedule, problem):
        b = pick(accuracy, schedule=schedule, problem=problem)
        if b is None or b["error of the exact gradient"] > 1e-6:
            return b and "wrong with exact checkpoints, too"
        share = "nothing rounded" if b["share"] is None else f"{b['share']:.2f}"
        return f"{b['error of the gradient']:.1e}, {b['order']:.2f}, {share}"

    columns = [*dict.fromkeys(b["problem"] for b in accuracy)]
    lines += table(dict.fromkeys(b["schedule"] for b in accuracy), columns, cell)
    if accuracy:
        worst = max(b["error of J"] for b in accuracy)
        lines += [f"The functional differs by {worst:.1e} at most.", ""]
    for b in found:
        if "ratio" in b:
            lines += [
                f"An iteration in single precision, divided by an exact one, {b['problem']}, {b['ranks']} rank(s): "
                f"{ratio(b, 3)}; seconds in the tape's store and restore: {b['store and restore']:.3f}, exact "
                f"{b['store and restore, exact']:.3f}.",
                "",
            ]
    return lines


def save(figure, folder, name):
    for axes in figure.axes:
        axes.minorticks_off()
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    return [f"![{name}]({name}.svg)", ""]


if __name__ == "__main__":
    main()
