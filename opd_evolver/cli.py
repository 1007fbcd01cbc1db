"""The `opd` command. Results on stdout (`--json` everywhere), progress on stderr.

Exit codes: 0 done · 1 failed · 2 set-up or input error · 3 outage · 4 gate refused for good · 130 Ctrl-C or SIGTERM.
Imports nothing heavy: `opd --help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from opd_evolver import __version__
from opd_evolver.errors import OpdError, SetupError
from opd_evolver.processes import share_cores

EPILOG = (
    "exit codes: 0 done, 1 failed, 2 set-up or input error, 3 outage, 4 gate refused for good, 130 Ctrl-C or SIGTERM"
)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, target: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=EPILOG)
    parser.set_defaults(target=target)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    known = "micro | laptop | evidence | qwen3-4b-1gpu"
    parser.add_argument("--preset", help=f"{known} (default: the project's params.yaml)")
    parser.add_argument("--name", default="default", help="name of the run (default: default)")
    _set_option(parser)
    parser.add_argument("--fork", action="store_true", help="open a new lineage when science parameters changed")
    _place_options(parser)


def _set_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", dest="pairs", help="override a parameter"
    )


def _place_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--up", action="store_true", help="bring the local stack up for this run and down afterwards")
    parser.add_argument("--local", action="store_true", help="without a Prefect server or worker of your own")


def build_parser() -> argparse.ArgumentParser:
    """All subcommands; each names the function that serves it."""
    parser = argparse.ArgumentParser(prog="opd", description="Make an LLM agent evolve.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"opd-evolver {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _command(commands, "run", "run:run", "begin, resume or extend a co-evolution")
    _run_options(run)
    resume = _command(commands, "resume", "run:resume", "take an interrupted run to its end")
    resume.add_argument("name", nargs="?", default="default")
    _place_options(resume)
    rounds = _command(commands, "rounds", "rounds:rounds", "compare the rounds of a run")
    rounds.add_argument("name", nargs="?", default="default")

    _measuring(commands)
    export = _command(commands, "export", "export:export", "the agent of a round as one folder: weights, memory, card")
    export.add_argument("name", nargs="?", default="default")
    export.add_argument("--to", required=True, metavar="FOLDER", help="must not exist")
    export.add_argument("--round", type=int, help="a finished round, 0: the base policy (default: the champion)")
    export.add_argument("--form", choices=("merged", "adapter"), default="merged", help="default: merged weights")

    memory = commands.add_parser("memory", help="look into the memory, or roll it back", epilog=EPILOG)
    actions = memory.add_subparsers(dest="action", required=True, metavar="ACTION")
    _memory_commands(actions)

    for name, text in (
        ("up", "start the local stack on loopback"),
        ("status", "what runs"),
        ("down", "stop what `opd up` started"),
    ):
        served = _command(commands, name, f"stack:{name}", text)
        if name == "up":
            served.add_argument(
                "--store", choices=("embedded", "weaviate"), default="embedded", help="weaviate: host the memory, too"
            )
    return parser


def _measuring(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What measures policies, environments and whole runs."""
    evaluate = _command(commands, "evaluate", "evaluate:evaluate", "measure a policy on families it has never seen")
    evaluate.add_argument("policy", help="`seed`, or a folder in Hugging Face form")
    evaluate.add_argument("--split", default="novel-test", choices=("novel-test", "novel-val"))
    evaluate.add_argument("--tasks", type=int, default=200, help="tasks a domain (default 200)")
    evaluate.add_argument("--domains", default="", help="default: what a seed policy was trained on, else sql,apps")
    evaluate.add_argument("--preset", help="dialect and budgets (default: those that the seed policy speaks)")
    _set_option(evaluate)
    trial = _command(commands, "try", "trial:trial", "a few tasks with a policy of yours: all shown, a round estimated")
    trial.add_argument("--env", required=True, help="environment, see `opd check-env`")
    trial.add_argument("--policy", required=True, help="`seed`, a folder in Hugging Face form, or an endpoint's URL")
    trial.add_argument("--model", help="with a URL: the id under which the server knows the model")
    trial.add_argument("--tasks", type=int, default=3, help="tasks (default 3)")
    trial.add_argument("--preset", help="budgets and round (default: laptop for seed, else qwen3-4b-1gpu in float32)")
    trial.add_argument("--dialect", choices=("terse", "instruct"), help="default: terse for seed, else instruct")
    _set_option(trial)
    bench = commands.add_parser("bench", help="evidence over several seeds", epilog=EPILOG)
    kinds = bench.add_subparsers(dest="action", required=True, metavar="ACTION")
    every = _command(
        kinds, "rounds", "bench:rounds", "the co-evolution from several seeds, pooled into one page; goes on"
    )
    parts = _command(
        kinds, "ablations", "bench:ablations", "the same with one part left out at a time, against the whole; goes on"
    )
    parts.add_argument("--arms", nargs="+", help="which parts to leave out (default: each in turn)")
    for seeds, n, name, page in ((every, 5, "bench", "docs/results.md"), (parts, 3, "arm", "docs/ablations.md")):
        seeds.add_argument("--seeds", type=int, default=n, help=f"how many (default {n})")
        seeds.add_argument("--first-seed", type=int, default=0)
        seeds.add_argument(
            "--add",
            action="append",
            default=[],
            metavar="FILE",
            help="also other seeds, of another machine or day: the .seeds.json beside its page",
        )
        seeds.add_argument("--name", default=name, help=f"runs begin with it (default: {name})")
        seeds.add_argument("--preset", help="default: the project's params.yaml")
        seeds.add_argument(
            "--policy", nargs="+", help="base policies, by turns of the seeds (default: that of the parameters)"
        )
        _set_option(seeds)
        seeds.add_argument("--out", default=page, help=f"page; numbers lie beside it (default {page})")
    check = _command(
        commands, "check-env", "evaluate:check_env", "prove an environment's promises and print its figures"
    )
    check.add_argument("name", nargs="?", help="environment (default: every one installed)")
    check.add_argument("--all", action="store_true", help="every environment installed")
    check.add_argument("--tasks", type=int, default=100, help="tasks a split (default 100)")
    check.add_argument("--preset", help="whose levels and headroom (default: params.yaml, where there is one)")
    _set_option(check)


def _memory_commands(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    log = _command(actions, "log", "memory:log", "rounds, their entries and operations")
    show = _command(actions, "show", "memory:show", "one entry, whole")
    show.add_argument("entry_id")
    search = _command(actions, "search", "memory:search", "the entries nearest to a text")
    search.add_argument("text")
    search.add_argument("--limit", type=int, default=10)
    search.add_argument("--scope")
    rollback = _command(
        actions, "rollback", "memory:rollback", "open a lineage from a finished round (nothing is rewritten)"
    )
    rollback.add_argument("round", type=int)
    undo = _command(actions, "undo", "memory:undo", "undo one merge or deletion, or the last rollback, reembed or fork")
    undo.add_argument(
        "operation", nargs="?", help="an id that `log` prints, or enough of its start; none: the rollback"
    )
    undo.add_argument("--dry-run", action="store_true", help="with an operation: tell what it would do")
    maintain = _command(actions, "maintain", "memory_maintain:maintain", "what maintenance would merge and delete now")
    maintain.add_argument("--dry-run", action="store_true", help="required: rounds maintain by themselves")
    reindex = _command(actions, "reindex", "memory:reindex", "rebuild the index from the ledger")
    erase = _command(actions, "erase", "memory_edit:erase", "forget an entry: ledger, index and every snapshot")
    erase.add_argument("entry_id", help="an id, or enough of its start")
    erase.add_argument("--reason", required=True, help="kept with the id in runs/NAME/erasures.jsonl")
    diff = _command(actions, "diff", "memory_versions:diff", "what changed between two rounds")
    diff.add_argument("before", help="a round, or lineage:round")
    diff.add_argument("after", help="a round, or lineage:round")
    why = _command(actions, "why", "memory_versions:why", "the story of an entry: sources, uses, value, operations")
    why.add_argument("entry_id", help="an id, or enough of its start")
    gc = _command(actions, "gc", "memory_versions:gc", "what nothing needs any more, and its size")
    gc.add_argument("--yes", action="store_true", help="remove it")
    copy = _command(actions, "copy", "memory_index:copy", "host the last round's memory in another store")
    copy.add_argument("--to", choices=("embedded", "weaviate"), required=True)
    reembed = _command(actions, "reembed", "memory_index:reembed", "embed the memory anew, in a new lineage")
    reembed.add_argument("--to", metavar="EMBEDDER", help="hash-256 | st:FOLDER | endpoint:MODEL (docs/embedders.md)")
    bring = _command(actions, "import", "memory_edit:import_", "bring other people's trajectories (docs/import.md)")
    bring.add_argument("file", help="one JSON object a line")
    bring.add_argument("--domain", help="for lines that name none")
    bring.add_argument("--scope", help="for lines that name none")
    bring.add_argument("--dry-run", action="store_true", help="read and report only")
    waiting = _command(
        actions, "waiting", "memory_edit:waiting", "imports and undone operations that have not entered yet"
    )
    withdraw = _command(actions, "withdraw", "memory_edit:withdraw", "take back one of them before it enters")
    withdraw.add_argument("edit", help="an id that `waiting` prints, or enough of its start")
    edited = (undo, bring, waiting, withdraw, erase, maintain)
    for parser in (log, show, search, rollback, reindex, copy, reembed, diff, why, gc, *edited):
        parser.add_argument("--name", default="default", help="name of the run (default: default)")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into one line and an exit code."""
    parser = build_parser()
    given = parser.parse_args(argv)
    share_cores()
    if threading.current_thread() is threading.main_thread():
        # As Ctrl-C: what was started is stopped, and the command that goes on is named.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    module, _, name = given.target.partition(":")
    try:
        function: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(f"opd_evolver.commands.{module}"), name
        )
        return function(given)
    except OpdError as error:
        if given.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if given.debug:
            raise
        print(f"error: {_of_the_system(error)}", file=sys.stderr)
        return 2


def _of_the_system(error: OSError) -> SetupError:
    """A full disk or a missing permission that nobody explained on the way here."""
    where = f": {error.filename}" if error.filename else ""
    mends = {
        errno.EACCES: f"chmod -R u+rwX {error.filename or 'that folder'}",
        errno.ENOSPC: "free some space, then: opd resume",
        errno.EDQUOT: "free some space, then: opd resume",
        errno.EFBIG: "free some space, then: opd resume",
    }
    mend = mends.get(error.errno or 0, "the same command with --debug shows where")
    return SetupError(f"{error.strerror or error}{where}", "a readable and writable file", mend)


if __name__ == "__main__":
    raise SystemExit(main())
