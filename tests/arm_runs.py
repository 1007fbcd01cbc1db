"""Runs of arms with outcomes made by hand."""

from __future__ import annotations

from opd_evolver.benchmark import arms
from opd_evolver.benchmark.results import DEPLOYED, SeedResult
from opd_evolver.benchmark.statistics import Unit


def seed(number: int, won: dict[str, int], kept: float = 1.0) -> arms.ArmRun:
    """Column → of ten tasks in each of eight families, how many succeed; odd families are at home in tools.

    `kept`: what is left of the base's writing.
    """
    columns = {
        name: tuple(
            Unit(
                task_id=f"t{family}-{task}",
                family=f"f{family}",
                domain="sql",
                numerator=float((task + family) % 10 < won.get(name, 1) - (name == "last_memory" and 4 * (family % 2))),
            )
            for family in range(8)
            for task in range(10)
        )
        for name in DEPLOYED
    }
    odd = frozenset(one.task_id for one in columns["base_alone"] if int(one.family[1:]) % 2)
    found = SeedResult(
        seed=number,
        lineage=f"s{number}",
        columns=columns,
        kinds={"home tool": odd},
        retention={"write_exact": (0.5, 0.5 * kept)},
    )
    return arms.arm_run(found, {"date": "d"})
