"""Do two runs say the same? `python -m arcompile.bench.agree demo`, or `--runs [FILE]` for the two
newest whole runs of `arcompile bench all` in a file of results; a row in results/agree.jsonl.

Whole runs agree where 9 in 10 of their figures lie in the span that the other run prints, which is
what the span says of them. A run's span is of what it and the earlier runs in the file know, so the
later run's figures are news to the earlier one's spans: `foretold` counts those alone. Two runs of
one suite have p10 to p90 only, which have to overlap.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcompile.bench import history, machine, readme, runner, runs, suites
from arcompile.bench.spread import SAME
from arcompile.bench.suites import Suite
from arcompile.errors import ArcError

ROWS = Path(__file__).with_name("results") / "agree.jsonl"


def agreement(suite: Suite) -> dict[str, Any]:
    """Each figure of two runs in a row, and whether each is within both runs' spread."""
    start = time.perf_counter()
    one, two = (runner.measure(suite) for _ in range(2))
    figures = history.since([two], [one])
    seen = [f["verdict"] for f in figures if f["verdict"] != "measured once"]
    return {"suite": f"agree-{suite.name}", "kind": "agree",
            "two_runs_s": round(time.perf_counter() - start, 1), "figures": figures,
            "agree": all(v == SAME for v in seen)}


def whole(rows: list[Mapping[str, Any]], quick: bool = False) -> tuple[dict[str, Any], str]:
    """A row about the two newest whole runs, and its table. Raises ArcError."""
    found = runs.complete(rows, quick)
    if len(found) < 2:
        raise ArcError(f"{len(found)} whole runs in these results, and two are compared",
                       hint="arcompile bench all -o FILE, twice")
    one, two = found[-2:]
    earlier = runs.before(one, found)
    lines = runs.compare(one, two, earlier)
    read = {r.name: {k: x["machine"]["read_gbps"]["best"] for k, x in r.rows.items()
                     if "read_gbps" in x.get("machine", {})} for r in (one, two)}
    row = {"suite": "agree-runs", "kind": "agree-runs", "one": one.name, "two": two.name,
           "quick": quick, "seconds": [one.told["s"], two.told["s"]],
           "earlier": [r.name for r in earlier], "counts": runs.counts(lines), "lines": lines,
           "read_gbps": read}
    return row, runs.markdown(lines, one, two)


def keep(row: dict[str, Any], dry: bool = False) -> None:
    """Append the row with when and where it was made."""
    row |= {"host": machine.host(), "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.facts()}
    if not dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="?", default="demo")
    parser.add_argument("--runs", nargs="?", const="", metavar="FILE",
                        help="compare whole runs: of a file, or of the committed results")
    parser.add_argument("--quick", action="store_true", help="of runs made with --quick")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    if told.runs is None:
        row = agreement(suites.find(told.suite))
        keep(row, told.dry)
        print(history.table(row["figures"]))
        print({k: row[k] for k in ("two_runs_s", "agree")})
        return
    from arcompile import bench

    row, table = whole(history.rows(told.runs) if told.runs else bench.committed(), told.quick)
    keep(row, told.dry)
    print(table)
    print(json.dumps(row["counts"], indent=1))
    print(readme.agreed(row["counts"]))


if __name__ == "__main__":
    main()
