"""`opd bench`: the same co-evolution from several seeds, whole or with parts left out, pooled into one page."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_evolver import lineage
from opd_evolver.commands.display import Watch
from opd_evolver.commands.run import interrupted, to_its_end
from opd_evolver.console import result, say
from opd_evolver.durable import read_json, write_text
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run
from opd_evolver.params import load, nearest, parse_set
from opd_evolver.records import SCHEMA_VERSION, canonical_json
from opd_evolver.steps import dispatch, prepare

if TYPE_CHECKING:
    from opd_evolver.benchmark.seeds_kept import MeasuredSeed


def rounds(given: argparse.Namespace) -> int:
    """Run what is missing, seed after seed; then measure, pool and write the page. Again, it goes on."""
    return _unless_interrupted(given, "rounds", _rounds)


def ablations(given: argparse.Namespace) -> int:
    """Run the whole and every arm that is missing, seed after seed; then compare and write the page."""
    return _unless_interrupted(given, "ablations", _ablations)


def _unless_interrupted(given: argparse.Namespace, action: str, carry_out: Callable[[argparse.Namespace], int]) -> int:
    # Of the outcomes of others alone a page can be made without a run.
    if given.seeds < (0 if given.add else 1):
        raise SetupError(f"--seeds {given.seeds}", "at least 1", "for example --seeds 5")
    dispatch.need_project()
    try:
        return carry_out(given)
    except KeyboardInterrupt:
        return interrupted(_command(given, action))


def _rounds(given: argparse.Namespace) -> int:
    from opd_evolver.benchmark import kept, seeds_kept
    from opd_evolver.benchmark.report import interval_text
    from opd_evolver.benchmark.results import results

    asked = load(preset=given.preset, overrides=_overrides(given, 0, {}))
    parameters = kept.parameters_digest(asked)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    file = Path(given.out).with_suffix(".seeds.json")
    before = seeds_kept.load(file, parameters) if file.exists() else None
    added = [seeds_kept.read(Path(one), parameters=parameters, here=seeds, own=Path(one) == file) for one in given.add]
    found = elsewhere = seeds_kept.joined([], added)
    here: list[seeds_kept.MeasuredSeed] = []

    def keep() -> None:
        tree = seeds_kept.keep(found, parameters, before, [one.seed for one in here])
        write_text(file, canonical_json(tree) + "\n")

    for number in range(given.seeds):
        run = _carried_out(given, number, given.name, {}, asked.rounds)
        here.append(_measured_seed(run, asked.rounds))
        found = seeds_kept.joined(here, [elsewhere])
        # A machine that is lost takes the seed it was at, not the finished ones: `--add` brings them back.
        keep()
    if not here:
        keep()
    last = [one.last for one in found]
    champions = [one.champion for one in found if one.champion is not None]
    pooled = results(last)
    shown = champions != last and len(champions) == len(last)
    left = results(champions, champions=True) if shown else None
    measure = _measuring(given, "rounds", [one.seed for one in last], [one.policy for one in found])
    files = [*_write(given, pooled, left, found, measure), str(file)]
    tree = {"files": files, **pooled.model_dump(mode="json", exclude={"seeds"})}
    tree["champion"] = left.model_dump(mode="json", exclude={"seeds"}) if left else None
    lines = [
        f"{one.said if one.reached else one.said.upper():12} {one.claim.name}: "
        f"{interval_text(one.found, signed=True)}, asked {one.claim.least:+.2f}"
        for one in pooled.verdicts
    ]
    result(tree, "\n".join([*lines, *files]), as_json=given.json)
    return 0


def _measured_seed(run: Run, last: int) -> MeasuredSeed:
    """A finished run's last round and the one that its gate left to use."""
    from opd_evolver.benchmark.seeds_kept import MeasuredSeed
    from opd_evolver.steps.evidence import collect

    say(f"{run.lineage}: measuring")
    found = champion = collect(run, last)
    held = run.held(last + 1)
    if held == 0:
        say(f"{run.lineage}: the gate has refused every round, so there is no champion to show")
    elif held != last:
        champion = collect(run, held)
    return MeasuredSeed(
        last=found,
        champion=champion if held else None,
        policy=run.params.policy.path,
        measured=_measured(run),
    )


def _ablations(given: argparse.Namespace) -> int:
    from opd_evolver.benchmark import arms, arms_kept, kept
    from opd_evolver.steps.evidence import collect

    wanted = list(dict.fromkeys([arms.WHOLE, *(given.arms or arms.ARMS)]))
    if unknown := [name for name in wanted if name not in arms.ARMS]:
        raise SetupError(f"no arm {unknown[0]!r}", " | ".join(arms.ARMS), nearest(unknown[0], arms.ARMS))
    # Before hours of running: a file that cannot be pooled with them, or that they cannot be written to.
    asked = load(preset=given.preset, overrides=_overrides(given, 0, {}))
    parameters = kept.parameters_digest(asked)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    out = Path(given.out)
    files = [out, out.with_suffix(".json"), out.with_suffix(".seeds.json")]
    before = arms_kept.load(files[2], parameters) if files[2].exists() else None
    added = [
        # What this very command has written before holds seeds of here, too.
        arms_kept.read(Path(file), arms=wanted, parameters=parameters, here=seeds, own=Path(file) == files[2])
        for file in given.add
    ]
    found = elsewhere = arms_kept.joined(dict.fromkeys(wanted, ()), added)
    # Seed by seed: where time runs out, fewer seeds of all arms are worth more than all seeds of some.
    here: dict[str, list[arms.ArmRun]] = {name: [] for name in wanted}
    for number in range(given.seeds):
        for name in wanted:
            whole = here[arms.WHOLE][number].lineage if name != arms.WHOLE else None
            run = _carried_out(given, number, f"{given.name}-{name}", arms.ARMS[name].overrides, asked.rounds, whole)
            say(f"{run.lineage}: measuring")
            here[name].append(arms.arm_run(collect(run, asked.rounds, novel=False), _measured(run)))
        found = arms_kept.joined(here, [elsewhere])
        # A machine that is lost takes the seed it was at, not the finished ones: `--add` brings them back.
        write_text(files[2], canonical_json(arms_kept.keep(found, parameters, before, seeds[: number + 1])) + "\n")
    compared = [arms.compare(found[arms.WHOLE], found[name], name) for name in wanted]
    whole_runs = found[arms.WHOLE]
    measure = _measuring(given, "ablations", [one.seed for one in whole_runs])
    text = arms.page(compared, command=_command(given, "ablations"), runs=whole_runs, measure=measure)
    write_text(files[0], text)
    write_text(files[1], canonical_json([one.model_dump(mode="json") for one in compared]) + "\n")
    tree = {"files": [str(file) for file in files], "verdicts": {one.arm: one.verdict for one in compared}}
    lines = [f"{one.arm:20} {one.verdict}" for one in compared if one.arm != arms.WHOLE]
    result(tree, "\n".join([*lines, *tree["files"]]), as_json=given.json)
    return 0


def _measured(run: Run) -> dict[str, str]:
    """When and on what a finished run was first measured: a later call only reads what it came to."""
    path = run.paths.run / "measured.json"
    if not path.exists():
        write_text(path, canonical_json({"schema_version": SCHEMA_VERSION, "measured": _machine()}) + "\n")
    return dict(read_json(path)["measured"])


def _overrides(given: argparse.Namespace, number: int, arm: Mapping[str, Any]) -> dict[str, Any]:
    overrides: dict[str, Any] = {**parse_set(given.pairs), **arm, "seed": given.first_seed + number}
    if given.policy:
        overrides["policy.path"] = given.policy[number % len(given.policy)]
    return overrides


def _carried_out(
    given: argparse.Namespace, number: int, name: str, arm: Mapping[str, Any], last: int, whole: str | None = None
) -> Run:
    """The run of a seed, its round `last` finished; what it would make as the run `whole` did is taken from there."""
    overrides = _overrides(given, number, arm)
    name = f"{name}-s{overrides['seed']}"
    run = prepare.open_for_work(prepare.artifact_root(), name, preset=given.preset, overrides=overrides)
    if not run.is_complete(last):
        if whole is not None:
            from opd_evolver.steps.adopt import adopt

            if adopt(run, lineage.open_run(run.root, whole)):
                say(f"{run.lineage}: goes on behind the fast loop of {whole}")

        def carry_out(watch: Watch) -> None:
            watch.say(f"seed {overrides['seed']}: run `{name}`")
            dispatch.locally(run, watch.tick)

        to_its_end(run, carry_out)
    return run


def _write(
    given: argparse.Namespace, pooled: Any, champion: Any, found: Sequence[MeasuredSeed], measure: str | None
) -> list[str]:
    from opd_evolver.benchmark import results_csv, results_page

    out = Path(given.out)
    files = [out, *(out.with_suffix(suffix) for suffix in (".csv", ".svg", ".json"))]
    figures = out.with_name("gpu.json")
    text = results_page.page(
        pooled,
        title="Results",
        command=_command(given, "rounds"),
        measured=[(one.seed, one.measured) for one in found],
        measure=measure,
        curves=out.with_suffix(".svg").name,
        sizes=read_json(figures) if figures.exists() else None,
        champion=champion,
    )
    write_text(files[0], text)
    write_text(files[1], results_csv.table(pooled, champion))
    results_page.curves(pooled.seeds, files[2])
    # What each episode came to lies in the runs, what each task did in the file of the seeds.
    heavy = {"seeds": {"__all__": {"columns", "kinds", "selection"}}}
    light = pooled.model_dump(mode="json", exclude=heavy)
    light["champion"] = champion.model_dump(mode="json", exclude=heavy) if champion else None
    write_text(files[3], canonical_json(light) + "\n")
    return [str(file) for file in files]


def _command(given: argparse.Namespace, action: str) -> str:
    """What makes the page again."""
    words = ["opd", "bench", action, "--seeds", str(given.seeds), "--first-seed", str(given.first_seed)]
    words += ["--name", given.name, "--out", given.out]
    words += ["--preset", given.preset] if given.preset else []
    words += ["--policy", *given.policy] if given.policy else []
    words += ["--arms", *given.arms] if getattr(given, "arms", None) else []
    words += [word for file in given.add for word in ("--add", file)]
    for pair in given.pairs:
        words += ["--set", pair]
    return shlex.join(words)


def _measuring(
    given: argparse.Namespace, action: str, seeds: Sequence[int], policies: Sequence[str] | None = None
) -> str | None:
    """What measures all seeds of a page that is in part of outcomes from before; None where one command does not.

    Args:
        given: what makes the page.
        action: of `opd bench`.
        seeds: of the page, in their order.
        policies: the base policy of each; None: not known.
    """
    in_a_row = [*seeds] == [*range(seeds[0], seeds[0] + len(seeds))]
    if not given.add or not in_a_row or (policies is None and len(given.policy or ()) > 1):
        return None
    if policies is not None and len({*policies}) == 1:
        policies = policies[:1]
    whole = {"seeds": len(seeds), "first_seed": seeds[0], "add": [], "policy": policies or given.policy}
    return _command(argparse.Namespace(**{**vars(given), **whole}), action)


def _machine() -> dict[str, str]:
    import torch
    import transformers

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {memory:.0f} GiB",
        "device": f"{torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else "CPU",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
