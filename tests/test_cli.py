"""The command: one JSON value on stdout under --json, exit codes, --debug, and nothing heavy for --help."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Opd

from opd_evolver import cli, lineage
from opd_evolver.errors import GateRefusal, OpdError, OutageError, SetupError
from opd_evolver.memory import embed

SOURCE = Path(__file__).parents[1]


def commands() -> list[tuple[str, ...]]:
    """Every command that --help names."""
    found = []
    for parser in (cli.build_parser(),):
        for name, one in parser._subparsers._group_actions[0].choices.items():  # type: ignore[union-attr,index]
            nested = [
                action for action in one._actions if hasattr(action, "choices") and isinstance(action.choices, dict)
            ]
            found += [(name, inner) for action in nested for inner in action.choices] or [(name,)]
    return found


JSON_COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("run",): ("--name", "done", "--local"),
    ("resume",): ("done",),
    ("rounds",): ("done",),
    ("evaluate",): ("POLICY", "--tasks", "2", "--domains", "sql"),
    ("try",): ("--env", "sql", "--policy", "POLICY", "--preset", "laptop", "--dialect", "terse", "--tasks", "1"),
    ("check-env",): ("sql", "--tasks", "12"),
    ("memory", "log"): ("--name", "done"),
    ("memory", "show"): ("ENTRY", "--name", "done"),
    ("memory", "search"): ("late", "--name", "done"),
    ("memory", "rollback"): ("1", "--name", "done"),
    ("memory", "undo"): ("--name", "done"),
    ("memory", "maintain"): ("--dry-run", "--name", "done"),
    ("memory", "reindex"): ("--name", "done"),
    ("memory", "erase"): ("ENTRY", "--reason", "test", "--name", "done"),
    ("memory", "diff"): ("0", "1", "--name", "done"),
    ("memory", "why"): ("ENTRY", "--name", "done"),
    ("memory", "gc"): ("--name", "done"),
    ("memory", "copy"): ("--to", "embedded", "--name", "done"),
    ("memory", "reembed"): ("--to", "hash-64", "--name", "done"),
    ("memory", "import"): ("IMPORT", "--dry-run", "--name", "done"),
    ("memory", "waiting"): ("--name", "done"),
    ("export",): ("done", "--round", "1", "--to", "exported"),
    ("status",): (),
    ("down",): (),
}


def test_every_command_is_covered_here_or_elsewhere() -> None:
    # test_stack_services.py, test_bench_rounds.py, test_bench_ablations.py, test_edits_withdraw.py
    elsewhere = {("up",), ("bench", "rounds"), ("bench", "ablations"), ("memory", "withdraw")}
    assert set(commands()) == set(JSON_COMMANDS) | elsewhere


@pytest.mark.parametrize("command", JSON_COMMANDS, ids=" ".join)
def test_json_is_one_value_on_stdout(
    project: Path, opd: Opd, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(embed.EMBEDDERS, "hash-64", lambda: embed.HashEmbedder(64))
    if command == ("memory", "undo"):
        assert opd("memory", "rollback", "1", "--name", "done").code == 0
    known = {"POLICY": str(lineage.open_run(project, "done").params.policy.path), "ENTRY": ""}
    if "IMPORT" in JSON_COMMANDS[command]:
        tip = {"level": "tip", "domain": "sql", "scope": "zora", "content": {"trigger": "late", "text": "4"}}
        (project / "import.jsonl").write_text(json.dumps(tip) + "\n")
        known["IMPORT"] = "import.jsonl"
    if "ENTRY" in JSON_COMMANDS[command]:
        lines = (project / "versions/done/round-001/memory/entries.jsonl").read_text().splitlines()
        known["ENTRY"] = json.loads(lines[0])["entry_id"]
    arguments = [known.get(word, word) for word in JSON_COMMANDS[command]]
    said = opd(*command, *arguments, "--json")
    tree = json.loads(said.out)
    assert isinstance(tree, dict | list) and said.code == (1 if command == ("status",) else 0)
    if command[0] in ("run", "resume", "rounds"):
        assert {"name", "lineage", "preset", "base", "rounds", "differences"} <= set(tree)
        assert {"round", "gate", "digests", "memories", "seconds", "tokens", "columns"} <= set(tree["rounds"][0])
        assert set(tree["rounds"][0]["digests"]) == {"entries", "ledger", "examples", "weights"}
    once = {("memory", "undo"), ("memory", "rollback"), ("memory", "reembed")}
    text = opd(*command, *arguments) if command not in once else said
    assert text.out.strip() and "Traceback" not in text.err


def test_json_leaves_stdout_empty_on_errors(project: Path, opd: Opd) -> None:
    for command in (("rounds", "no"), ("run", "--local", "--set", "x=1"), ("memory", "log", "--name", "no")):
        said = opd(*command, "--json")
        assert said.code == 2 and said.out == "" and said.err.startswith("error: ")


def test_a_finished_run_does_nothing_and_says_so(intact: Path, opd: Opd) -> None:
    for command in (("run", "--name", "done", "--local"), ("resume", "done", "--local")):
        said = opd(*command)
        assert said.code == 0 and "all 1 rounds are finished; nothing to do" in said.err
        assert said.out.startswith("run done")


def test_help_and_the_nothing_to_do_way_import_nothing_heavy(project: Path) -> None:
    heavy = "torch transformers prefect mlflow dvc pandas great_expectations weaviate peft accelerate"
    code = (
        "import sys\nfrom opd_evolver.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print(sorted(set({heavy.split()!r}) & {{m.split('.')[0] for m in sys.modules}}), file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["--version"], ["run", "--help"], ["run", "--name", "done", "--local"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        assert done.stdout and done.stderr.splitlines()[-1] == "[]", (arguments, done.stderr)


@pytest.mark.parametrize(
    "error, code",
    [
        (OpdError("it broke", "it whole", "mend it"), 1),
        (SetupError("it broke", "it whole", "mend it"), 2),
        (OutageError("it broke", "it whole", "mend it"), 3),
        (GateRefusal("it broke", "it whole", "mend it"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_are_the_documented_ones(
    opd: Opd, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    from opd_evolver.commands import rounds

    def fail(given: object) -> int:
        raise error

    monkeypatch.setattr(rounds, "rounds", fail)
    said = opd("rounds")
    assert said.code == code and said.out == ""
    assert said.err in ("error: it broke; expected it whole; mend: mend it\n", "interrupted\n")
    documented = cli.EPILOG
    for number, word in ((0, "done"), (1, "failed"), (2, "set-up"), (3, "outage"), (4, "gate"), (130, "Ctrl-C")):
        assert f"{number} {word}" in documented
    assert f"{code} " in documented


def test_debug_shows_the_traceback(opd: Opd) -> None:
    with pytest.raises(SetupError):
        opd("rounds", "nosuch", "--debug")


def test_an_error_of_the_system_names_a_command_that_shows_where(opd: Opd, monkeypatch: pytest.MonkeyPatch) -> None:
    from opd_evolver.commands import rounds

    def fail(given: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(rounds, "rounds", fail)
    said = opd("rounds")
    assert said.code == 2 and said.err.endswith("mend: the same command with --debug shows where\n")
    with pytest.raises(OSError, match="input/output"):
        opd("rounds", "--debug")


def test_a_closed_pipe_is_no_error(project: Path) -> None:
    command = f"{sys.executable} -m opd_evolver.cli rounds done --json | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_an_unknown_command_is_a_set_up_error(opd: Opd) -> None:
    said = opd("rnu")
    assert said.code == 2 and said.out == "" and "rnu" in said.err
