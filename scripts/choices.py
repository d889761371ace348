#!/usr/bin/env python3
"""How well measured times would order their own layouts if each had a random error: docs/validation.md, choice sets.

    python3 scripts/choices.py catalog/published/training_runs.csv catalog/published/choice_sets.csv
"""

import csv
import math
import random
import sys
from collections import defaultdict

# Columns that all layouts of one job have in common.
JOB = "group layers hidden heads ffn vocab seq_len gpu gpus_total precision global_batch".split()
ROUNDS = 200


def seconds(run):
    """Of a step, printed or by the printed throughput; none where neither is."""
    if run["iteration_s"]:
        return float(run["iteration_s"])
    if run["tokens_per_s_per_gpu"] and run["global_batch"] and run["seq_len"]:
        tokens = float(run["global_batch"]) * float(run["seq_len"])
        return tokens / (float(run["tokens_per_s_per_gpu"]) * float(run["gpus_total"]))
    return None


def jobs(runs, sets):
    """Measured seconds of every set, taken apart by job, three layouts at least."""
    with open(runs, newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file) if seconds(row)}
    with open(sets, newline="") as file:
        for row in csv.DictReader(file):
            parts = defaultdict(list)
            for member in row["ids_best_first"].split():
                if member in rows:
                    run = rows[member]
                    parts[tuple(run[column] for column in JOB)].append(seconds(run))
            yield from (times for times in parts.values() if len(times) >= 3)


def kendall(a, b):
    """Kendall's tau-b."""
    sign = lambda x: (x > 0) - (x < 0)
    pairs = [(sign(a[i] - a[j]), sign(b[i] - b[j])) for i in range(len(a)) for j in range(i)]
    return sum(x * y for x, y in pairs) / math.sqrt(sum(x * x for x, _ in pairs) * sum(y * y for _, y in pairs))


def main(runs, sets):
    measured = list(jobs(runs, sets))
    random.seed(0)
    print(f"{len(measured)} jobs; tau and largest regret in the mean of {ROUNDS} rounds, median and 90th percentile of the latter")
    for error in (0.02, 0.03, 0.04, 0.05):
        taus, largest = [], []
        for _ in range(ROUNDS):
            tau, regrets = [], []
            for times in measured:
                noisy = [time * math.exp(random.gauss(0, error)) for time in times]
                tau.append(kendall(times, noisy))
                regrets.append(times[noisy.index(min(noisy))] / min(times) - 1)
            taus.append(sum(tau) / len(tau))
            largest.append(max(regrets))
        largest.sort()
        middle, high = largest[ROUNDS // 2], largest[ROUNDS * 9 // 10]
        print(f"error {error:.0%}: tau {sum(taus) / ROUNDS:.2f}, largest regret {middle:.1%}, {high:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
