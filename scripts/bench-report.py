"""Turns what scripts/bench recorded into a table and a JSON file: medians and quartiles over the rounds.

bench-report.py report RECORDS OUT: RECORDS has one JSON object a line, of these kinds:
  turn      a closed loop, the case alone: requests a second, CPU time
  open      a constant rate, the case alone: latency
  side      a closed loop beside one of the bare proxy on the same core: the ratio of CPU time
  rss       resident memory in KiB; syscalls: calls a request by name
bench-report.py syscalls STRACE LOAD: the calls a request by name, from `strace -c` and a line of the load.
"""

import json
import statistics
import sys

ORDER = ["bare", "control", "memory", "core", "denial", "redis", "metered", "near", "flood"]


def quartiles(values):
    values = sorted(values)
    if len(values) == 1:
        return {"q1": values[0], "median": values[0], "q3": values[0], "n": 1}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3, "n": len(values)}


def syscalls(strace, load):
    """strace -c prints: share, seconds, µs a call, calls, errors if any, name."""
    requests = json.loads(load)["requests"]
    calls = {}
    with open(strace) as lines:
        for line in lines:
            words = line.split()
            if len(words) >= 5 and words[0][0].isdigit() and words[-1] != "total":
                calls[words[-1]] = int(words[3]) / requests
    print(json.dumps({name: round(n, 3) for name, n in calls.items() if n >= 0.005}))


def report(records, out):
    with open(records) as lines:
        records = [json.loads(line) for line in lines]
    cases = list(dict.fromkeys(record["case"] for record in records))
    cases.sort(key=ORDER.index)

    def values(kind, case, key):
        return {r["round"]: r["load"][key] for r in records if (r["kind"], r["case"]) == (kind, case)}

    def ratios(kind, case, key):
        bare, gate = values(kind, "bare", key), values(kind, case, key)
        return [gate[round] / bare[round] for round in gate if bare.get(round)]

    result = {}
    for case in cases:
        entry = {
            "cpu_us_per_request": quartiles(values("turn", case, "cpu_us_per_request").values()),
            "requests_per_second": quartiles(values("turn", case, "rate").values()),
            "p50_us": quartiles(values("open", case, "p50_us").values()),
            "p99_us": quartiles(values("open", case, "p99_us").values()),
        }
        for record in records:
            if record["case"] == case and record["kind"] in ("rss", "syscalls"):
                entry["rss_kib" if record["kind"] == "rss" else "syscalls_per_request"] = record["load"]
        if case != "bare":
            side = [r for r in records if (r["kind"], r["case"]) == ("side", case)]
            key = "cpu_us_per_request"
            entry["ratio_to_bare"] = {
                "cpu_side_by_side": quartiles([r["load"][key] / r["bare"][key] for r in side]),
                "cpu_in_turns": quartiles(ratios("turn", case, key)),
                "requests_per_second": quartiles(ratios("turn", case, "rate")),
                "p50": quartiles(ratios("open", case, "p50_us")),
                "p99": quartiles(ratios("open", case, "p99_us")),
            }
        result[case] = entry
    with open(out, "w") as file:
        json.dump({"rounds": max(r["round"] for r in records), "cases": result}, file, indent=1)

    def show(of, digits):
        return f"{of['median']:.{digits}f} ({of['q1']:.{digits}f}–{of['q3']:.{digits}f})"

    print("median (quartiles)")
    print(f"{'':8}{'CPU µs/request':>22}{'requests/s':>24}{'p50 µs':>20}{'p99 µs':>22}{'RSS MiB':>9}")
    for case, of in result.items():
        rss = f"{of['rss_kib'] / 1024:.1f}" if "rss_kib" in of else ""
        print(
            f"{case:8}{show(of['cpu_us_per_request'], 1):>22}{show(of['requests_per_second'], 0):>24}"
            f"{show(of['p50_us'], 0):>20}{show(of['p99_us'], 0):>22}{rss:>9}"
        )
    print("\ngate / bare")
    heads = {"cpu_side_by_side": "CPU, side by side", "cpu_in_turns": "CPU, in turns", "requests_per_second": "requests/s"}
    print(" " * 8 + "".join(f"{heads.get(name, name):>21}" for name in [*heads, "p50", "p99"]))
    for case, of in result.items():
        if case != "bare":
            print(f"{case:8}" + "".join(f"{show(of['ratio_to_bare'][name], 3):>21}" for name in [*heads, "p50", "p99"]))
    if any("syscalls_per_request" in of for of in result.values()):
        print("\nsystem calls a request")
        for case, of in result.items():
            calls = sorted(of.get("syscalls_per_request", {}).items(), key=lambda item: -item[1])
            total = sum(n for _, n in calls)
            print(f"{case:8}{total:6.2f}  " + ", ".join(f"{name} {n:.2f}" for name, n in calls))


if __name__ == "__main__":
    {"syscalls": syscalls, "report": report}[sys.argv[1]](*sys.argv[2:])
