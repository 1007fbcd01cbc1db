"""`shell`: real commands in a private folder, judged by a check of what they said and what they changed.

Hidden convention: in which folder a service writes its log. Every folder holds a log of the services asked for, old
copies that look alike; only the check knows the live one. Families beyond tips hide which parts a release puts into a
folder, and in which order (`environments/procedures.py`).
Source: ours; task and check script as in AgentBench's OS tasks.
Differs: a refused action leaves no trace, so that the second attempt meets what the first one met.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from opd_evolver.environments import conventions as cv
from opd_evolver.environments import procedures as pr
from opd_evolver.environments import shell_commands as sh
from opd_evolver.environments import tasks as task_list
from opd_evolver.environments.attempts import Attempts, wording
from opd_evolver.environments.procedural import ProceduralDomain
from opd_evolver.environments.shell_tree import FILE_MODE, Node, Tree, folder
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.records import Level, Step, Task
from opd_evolver.sections import NO_HEADROOM, HeadroomParams

# fmt: off
SERVICES = (
    "web", "mail", "cron", "dns", "ftp", "ssh", "ldap", "proxy",
    "cache", "queue", "batch", "login", "wiki", "chat", "print", "vpn",
)
FOLDERS = ("alpha", "beta", "gamma", "delta", "kappa", "sigma", "omega", "theta", "lambda", "zeta")
PROCEDURES = (
    pr.Procedure("skill", ("release", "rollback", "upload", "mirror", "compile", "stage", "freeze", "hotfix"), 3),
    pr.Procedure("tool", ("bundle", "vendor", "image", "rebuild", "deliver", "refresh", "preload", "snapshot"), 3),
    pr.Procedure("trajectory", ("boot", "setup", "provision", "join", "enroll", "expand", "relocate", "handover"), 4),
)
PARTS = ("certs", "conf", "docs", "libs", "bins")
# fmt: on
TARGETS = tuple(f"d{n}" for n in range(2, 10))
BACKUP, HIDDEN_MODE = "bak", 0o600
LIVE = "{} / {} . log"
OPS = {
    "faults": f"grep -c fault {LIVE}",
    "newest": f"tail -n 1 {LIVE}",
    "keep": f"cp {LIVE} {BACKUP}",
    "hide": f"chmod {HIDDEN_MODE:o} {LIVE}",
}
# Ranges of what the logs hold; the seed data draws from the same ones.
N_FAULTS, LAST_LINE = (1, 11), (10, 100)


def _phrase(sub: cv.Sub) -> str:
    return f"{sub.key} {sub.arg}" if sub.arg in TARGETS else f"{sub.arg} {sub.key}"


SPEC = cv.Domain(
    name="shell",
    slot=2,
    keys=SERVICES,
    values=FOLDERS,
    distinct=False,
    args=tuple(OPS),
    phrase=_phrase,
    steps=PARTS,
    step_args=TARGETS,
    procedures=PROCEDURES,
)


def log_of(scope: str, world_seed: int, service: str) -> dict[str, tuple[int, int]]:
    """By folder, how many faults a service's log there tells of and its last line; no two folders alike."""
    rng = cv.generator("logs", world_seed, scope, service)
    faults = rng.permutation(np.arange(*N_FAULTS))
    lasts = rng.permutation(np.arange(*LAST_LINE))
    return {name: (int(faults[i]), int(lasts[i])) for i, name in enumerate(FOLDERS)}


class Shell(ProceduralDomain):
    """The `shell` domain.

    Args:
        world_seed: fixes the conventions and the logs of all families.
        levels: home levels of the families, by turns.
        headroom: see `environments/headroom.py`.
    """

    domain = "shell"
    spec = SPEC

    def __init__(
        self, world_seed: int = 0, levels: Sequence[Level] = cv.TIPS_ONLY, headroom: HeadroomParams = NO_HEADROOM
    ) -> None:
        super().__init__(world_seed, levels, headroom)
        self._tree: Tree | None = None
        self._now: dict[str, Node] = {}

    # ── Environment ──

    def reset(self, task: Task) -> str:
        """A fresh tree for `task`; the first observation is the stage that an order begins with, else empty."""
        self._task = task
        self._now = dict(self._laid_out(task))
        self._attempts = Attempts(task_list.asked_of(self.spec, task))
        try:
            self._tree = self._tree or Tree()
            self._tree.restore(self._now)
        except OSError as error:
            raise self._lost(error) from error
        return self._attempts.first

    def _laid_out(self, task: Task) -> Iterator[tuple[str, Node]]:
        for name in (*FOLDERS, BACKUP):
            yield name, folder()
        for service in (sub.key for sub in task_list.subs_of(task) if sub.key in SERVICES):
            for name, (n_faults, last) in log_of(task.scope, int(task.gold["world_seed"]), service).items():
                yield f"{name}/{service}.log", Node(b"fault\n" * n_faults + b"%d\n" % last)
        if self.spec.levels != cv.TIPS_ONLY:
            for name in TARGETS:
                yield name, folder()
            for name in PARTS:
                yield name, Node(name.encode() + b"\n")

    def step(self, action: str) -> Step:
        """Run one command; what it said and changed must be what the current move asks for."""
        if self._task is None or self._tree is None:
            raise SetupError("step before reset", "reset(task) first")
        if self._attempts.over:
            return self._attempts.record(0.0)
        try:
            argv = sh.parse(action, self._tree.root)
        except sh.Refused as error:
            return self._attempts.record(0.0, str(error), error=True)
        try:
            said = sh.run(argv, self._tree.root)
            changed = self._tree.nodes()
            if said.code == 0 and self._is_right(self._task, said.stdout, changed):
                self._now = changed
                step = self._attempts.record(1.0, said.stdout)
                self._empty_target(self._task, self._tree)
                return step
            self._tree.restore(self._now)
        except OSError as error:
            raise self._lost(error) from error
        return self._attempts.record(0.0, said.stderr if said.code else said.stdout, error=said.code != 0)

    def _empty_target(self, task: Task, tree: Tree) -> None:
        """An order begins in an empty folder: a part that another one left there could not be seen to be copied."""
        moves = task_list.moves_of(task)
        if self._attempts.place < len(moves) and moves[self._attempts.place].stage == 1:
            target = f"{moves[self._attempts.place].arg}/"
            self._now = {path: node for path, node in self._now.items() if not path.startswith(target)}
            tree.restore(self._now)

    def _is_right(self, task: Task, said: str, changed: dict[str, Node]) -> bool:
        """The check of the current move: exactly this was said, exactly this has changed."""
        move = task_list.moves_of(task)[self._attempts.place]
        word = task_list.word_of(task, move)
        wanted, answer = dict(self._now), ""
        log = f"{word}/{move.key}.log"
        if move.stage:
            wanted[f"{move.arg}/{word}"] = Node(self._now[word].content)
        elif move.arg == "keep":
            wanted[f"{BACKUP}/{move.key}.log"] = Node(self._now[log].content, FILE_MODE)
        elif move.arg == "hide":
            wanted[log] = Node(self._now[log].content, HIDDEN_MODE)
        else:
            n_faults, last = log_of(task.scope, int(task.gold["world_seed"]), move.key)[word]
            answer = f"{n_faults if move.arg == 'faults' else last}\n"
        return said == answer and changed == wanted

    def _lost(self, error: OSError) -> OutageError:
        """The folder is gone or the disk is full; the next `reset` makes another one."""
        self.close()
        return OutageError(f"shell: {error}", "a writable temporary folder", "free space there, or set TMPDIR")

    def close(self) -> None:
        """Remove the tree."""
        if self._tree is not None:
            self._tree.close()
            self._tree = None

    # ── Procedural ──

    def action(self, sub: cv.Sub | cv.Move | cv.DemoSub, value: str) -> str:
        if self.spec.procedure(sub.key):
            return f"cp {value} {sub.arg}"
        return OPS[sub.arg].format(value, sub.key)

    def observation(self, sub: cv.DemoSub, ok: bool, is_last: bool, rng: np.random.Generator) -> str:
        number = ""
        if not sub.stage and sub.arg in ("faults", "newest"):
            number = str(int(rng.integers(*(N_FAULTS if sub.arg == "faults" else LAST_LINE))))
        next_text = sub.again if not ok else "" if is_last else sub.next_text
        return wording("ok" if ok else "no", number, next_text)

    def words(self) -> tuple[str, ...]:
        """Numbers are made of digits; a tokenizer may read each digit on its own."""
        templates = " ".join(OPS.values()).replace("{}", "")
        spoken = (*templates.split(), *["then", "next", "ok", "no", "error", "not", "a", "command", "…"])
        return (
            *dict.fromkeys((*spoken, *OPS, *sh.COMMANDS)),
            *"0123456789",
            *SERVICES,
            *FOLDERS,
            *cv.FIRST,
            *cv.SECOND,
            *self.spec.level_words(),
        )
