"""The engines: the sql sandbox and its score, the apps service and its verifier."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from opd_evolver.environments import conventions as cv
from opd_evolver.environments import sql as sql_module
from opd_evolver.environments.apps import Apps
from opd_evolver.environments.sql import Sql, overlap, rows_of
from opd_evolver.environments.tasks import subs_of
from tests.task_worlds import task_with, wrong_value

# ── sql ──


def test_every_code_and_operation_has_an_answer_of_its_own() -> None:
    for world in cv.worlds(sql_module.SPEC, "deploy-test", 12):
        groups: dict[int, list[int]] = {}
        rows = rows_of(world.scope, world.world_seed)
        for _, state, amount in rows:
            groups.setdefault(state, []).append(amount)
        assert sorted(groups) == list(range(10))
        answers = [f(amounts) for amounts in groups.values() for f in (len, sum, max, min)]
        assert len(set(answers)) == 40
        assert max(answers) < 1000
        assert len({row[0] for row in rows}) == len(rows)


def test_overlap_by_hand() -> None:
    assert overlap([(1,)], [(1,)]) == 1.0
    assert overlap([(1.0,)], [(1,)]) == 1.0
    assert overlap([(1,), (2,)], [(1,)]) == 0.5
    assert overlap([(1,), (1,)], [(1,)]) == 0.5
    assert overlap([(1,), (2,)], [(2,), (3,)]) == pytest.approx(1 / 3)
    assert overlap([], []) == 1.0
    assert overlap([], [(1,)]) == 0.0


def test_other_sql_with_the_same_rows_scores_and_partial_rows_score_partly() -> None:
    environment = Sql()
    task = task_with(environment, 1)
    (sub,) = subs_of(task)
    code = task.gold["facts"][sub.key]
    operation = sql_module.OPS[sub.arg]
    environment.reset(task)
    step = environment.step(
        f"WITH chosen AS (SELECT * FROM jobs j WHERE j.state IN ({code})) SELECT {operation} FROM chosen;"
    )
    assert step.info["success"]
    environment.reset(task)
    first = environment.step(f"select {operation} from jobs group by state")
    assert first.observation.startswith("no ")
    assert first.reward == pytest.approx(0.1)
    second = environment.step("select 1 where 0")
    assert second.reward == pytest.approx(-0.1)
    assert second.terminated


@pytest.mark.parametrize(
    "query",
    [
        "attach 'x.db' as other",
        "pragma table_info ( jobs )",
        "pragma journal_mode = delete",
        "delete from jobs",
        "update jobs set state = 4",
        "insert into jobs values ( 999 , 4 , 1 )",
        "drop table jobs",
        "create table t ( a )",
        "create temp table t as select 1",
        "begin",
        "vacuum into 'stolen.db'",
        "select load_extension ( 'x' )",
        "select random ( )",
        "select current_timestamp",
        "select date ( 'now' )",
        "select 1 ; drop table jobs",
        "select printf ( '%*d' , 2000000000 , 1 )",
        "select replace ( group_concat ( amount ) , ',' , group_concat ( amount ) ) || missing from jobs",
        "with recursive n ( i ) as ( select 1 union all select i + 1 from n ) select count ( * ) from n",
        "select count ( * ) from jobs a , jobs b , jobs c , jobs d , jobs e , jobs f",
        "selec 1",
        "select 1 /* " + "x" * 10_000,
        "",
        "select '\x00'",
        "select '\ud800'",
        "select cast ( x'ff' as text )",
    ],
)
def test_sandbox_refuses_and_the_data_stays(query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = Sql()
    task = task_with(environment, 1)
    environment.reset(task)
    refused = environment.step(query)
    assert refused.observation.startswith("error ")
    assert refused.reward == 0.0
    assert environment.step(environment.oracle(task)).info["success"]
    assert not list(tmp_path.iterdir())


HOSTILE = {
    # Each mention of a name is a copy of all it stands for: twice as many at every level.
    "copies": "with a0 as ( select 1 x ) , "
    + " , ".join(f"a{i + 1} as ( select a.x from a{i} a , a{i} b )" for i in range(22))
    + " select x from a22",
    "trim": "select count ( * ) from jobs j , jobs k where k.id < 40 and "
    f"ltrim ( '<{'a' * 900}>' || j.id || k.id , '<{'b' * 160}>a' ) = ''",
    "like": f"select sum ( ( '{'a' * 900}' || j.id || k.id || l.id || m.id ) like '%{'a' * 40}b' ) "
    "from jobs j , jobs k , jobs l , jobs m",
}
CHILD = """
import json, resource, sys, time
from opd_evolver.environments.sql import Sql
environment = Sql()
task = environment.tasks("deploy-test", 1)[0]
environment.reset(task)
seconds, kilobytes = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 10,) * 2)
said = environment.step(sys.argv[1]).observation
taken = time.process_time() - seconds
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes
right = environment.step(environment.oracle(task)).observation
print(json.dumps({"said": said, "right": right, "seconds": taken, "megabytes": grown / 1024}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_query_takes_little_time_and_memory_whatever_it_says(name: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, HOSTILE[name]], check=False, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr[-500:]
    found = json.loads(child.stdout)
    assert found["said"].startswith("error ") and found["right"].startswith("ok ")
    assert found["seconds"] < 3 and found["megabytes"] < 300, found


HONEST = {
    "long": "select "
    + " , ".join(f"sum ( case when state = {n} then amount else 0 end ) as total_of_state_{n}" for n in range(10))
    + " , "
    + " , ".join(f"count ( case when state = {n} then 1 end ) as number_of_rows_of_state_{n}" for n in range(10))
    + " from jobs where amount is not null and state in ( 0 , 1 , 2 , 3 , 4 , 5 , 6 , 7 , 8 , 9 )",
    "every row in one": "select group_concat ( id || ':' || state || ':' || amount ) from jobs",
    "pairs": "with a as ( select * from jobs ) , b as ( select x.state s , y.state t , sum ( x.amount * y.amount ) p "
    "from a x join a y on x.id <> y.id group by x.state , y.state ) select s , t , rank ( ) over ( order by p ) from b",
}


@pytest.mark.parametrize("name", HONEST)
def test_longer_queries_than_any_task_needs_still_run(name: str) -> None:
    environment = Sql()
    environment.reset(task_with(environment, 1))
    assert environment.step(HONEST[name]).observation.startswith("no ")
    assert name != "long" or len(HONEST[name]) > 1500


def test_many_rows_are_cut() -> None:
    environment = Sql()
    task = task_with(environment, 1)
    environment.reset(task)
    said = environment.step("select a.id , b.id from jobs a , jobs b").observation
    assert len(said.split()) == 10
    assert said.endswith("…")


# ── apps ──


def test_apps_needs_the_right_call_directly_before() -> None:
    environment = Apps()
    task = task_with(environment, 1)
    (sub,) = subs_of(task)
    value, wrong = task.gold["facts"][sub.key], wrong_value(environment, task, 0)
    operation = f"call {sub.key} {sub.arg}"

    def says(*actions: str) -> list[str]:
        environment.reset(task)
        return [environment.step(action).observation for action in actions]

    assert says(f"call {value} {operation}") == ["ok"]
    assert says(operation) == ["no"]
    assert says(f"call {value}", operation) == ["no", "ok"]
    assert says(f"call {wrong} {operation}", f"call {value} {operation}") == ["no", "ok"]
    assert says(f"{operation} call {value}", operation) == ["no", "ok"]
    assert says(f"call {value} call {wrong} {operation}") == ["error too many calls"]
    assert says("call unheard") == ["error unknown call"]
    assert says(f"call {sub.key}") == ["error unknown call"]
    assert says("refund it please") == ["error not a call"]
    other = next(item for item in environment.spec.args if item != sub.arg)
    # The verifier compares whole databases: a change beside the one asked for spoils the task.
    assert says(f"call {value} call {sub.key} {other}", f"call {value} {operation}") == ["no", "no"]
