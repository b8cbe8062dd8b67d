"""Measure Cermet, beside other frameworks where they are installed, and say which of its promises hold.

    python -m bench [section ...] [--quick] [--readme] [--peers torch,jax] [--threads 2]

Sections (all of them without a name): overhead, compile, memory, bits, second, limits, matmul, conv, kernels, steps, zoo, scaling. `docs/performance.md`
says what each measures and how.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
import traceback
from collections.abc import Callable

from bench.measure import ROOT, WorkerError
from bench.run import NAMES, PEERS, Bench
from bench.sections import engine, scaling, speed

SECTIONS: dict[str, Callable[[Bench], None]] = {
    "overhead": engine.overhead,
    "compile": engine.compiling,
    "memory": engine.memory,
    "bits": engine.bits,
    "second": engine.second,
    "limits": speed.limits,
    "matmul": speed.matmul,
    "conv": speed.convolution,
    "kernels": speed.kernels,
    "steps": speed.steps,
    "zoo": speed.zoo,
    "scaling": scaling.scaling,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    parser.add_argument("--readme", action="store_true", help="rewrite README's table also after a quick run")
    parser.add_argument("--peers", metavar="NAMES", help=f"of {','.join(PEERS)}; empty: measure Cermet alone")
    parser.add_argument("--threads", type=int, default=2, help="of each framework")
    options = parser.parse_args()
    unknown = [s for s in options.sections if s not in SECTIONS]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    # What compiles through a C++ compiler takes a minute or more for each model: only in a full run, or on demand.
    usual = [p for p in PEERS if not (options.quick and p == "torch.compile")]
    options.peers = usual if options.peers is None else [p for p in options.peers.split(",") if p]
    if unknown := [p for p in options.peers if p not in PEERS]:
        parser.error(f"no peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return options


def main() -> int:
    options = arguments()
    sys.path.insert(0, str(ROOT))
    bench = Bench(options.quick, options.threads, tuple(options.peers))
    report, failed = bench.report, []
    report.about |= {
        "cermet": bench.cermet.version,
        "peers": {NAMES[name]: worker.version for name, worker in bench.peers.items()},
        "threads": options.threads,
        "cpu": f"{os.cpu_count()} cores with {bench.cermet.call('bench.limits:vector_bits')}-bit vectors",
        "quick": options.quick,
        "date": datetime.date.today().isoformat(),
    }
    chosen = options.sections or list(SECTIONS)
    for name in chosen:
        begin, tables = time.perf_counter(), len(report.tables)
        try:
            SECTIONS[name](bench)
        except Exception as error:  # the other sections' figures are worth having
            failed.append(name)
            bench.note(f"{name}: {error}" if isinstance(error, WorkerError) else f"{name}: {traceback.format_exc()}")
        for table in report.tables[tables:]:
            print("\n" + table.text(), flush=True)
        bench.note(f"[{name}: {time.perf_counter() - begin:.0f} s]")
    bench.close()
    if report.requirements:
        print("\n" + report.required().text())
    print("\n" + report.heading())
    for path in report.write(ROOT / "out"):
        print(f"written: {path.relative_to(ROOT)}")
    if not failed and (options.readme or (not options.quick and set(chosen) == set(SECTIONS))):
        report.readme(ROOT / "README.md")
        print("written: README.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
