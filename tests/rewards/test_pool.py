"""The worker pool: whatever a reward function does, the other items are graded, in order."""

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxr1.rewards import Completion, Example, Reward, RewardError, RewardPool, WorkerOptions
from jaxr1.rewards import process as processes
from jaxr1.rl.grading import wait_for

FILE = Path(__file__).with_name("user_rewards.py")
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="looks for processes in /proc"
)


def items(*texts, **metadata):
    return [(Completion(text), Example("q", "7", "test", metadata)) for text in texts]


def user(function, **kwargs):
    return Reward(f"{FILE}:{function}", **kwargs)


def is_running(pid):
    """Whether there is such a process that is no zombie."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_totals_weights_and_none():
    rewards = [
        Reward("accuracy", 2.0),
        Reward("format", 0.5),
        user("scaled", name="length", options={"scale": 0.1}),
    ]
    with RewardPool(rewards) as pool:
        right, wrong, no_gold = pool.grade(
            [
                (Completion("<think>t</think><answer>7</answer>"), Example(answer="7")),
                (Completion("8"), Example(answer="7")),
                (Completion("8"), Example(answer=None)),
            ]
        )
        assert pool.submit([]).result() == []
    assert right.by_name == {"accuracy": 1.0, "format": 1.0, "length": pytest.approx(3.4)}
    assert right.total == pytest.approx(2.0 + 0.5 + 3.4) and right.status == "ok"
    assert wrong.by_name["accuracy"] == 0.0 and wrong.total == pytest.approx(0.1)
    # None skips one component
    assert no_gold.by_name["accuracy"] is None and no_gold.total == pytest.approx(0.1)


def test_none_from_all_has_no_total():
    with RewardPool([user("behave")]) as pool:
        grades = pool.grade(items("none", "1"))
    assert (grades[0].total, grades[0].status) == (None, "ok") and grades[1].total == 1.0


def test_every_misbehaviour_costs_only_its_own_item():
    bad = {
        "hang": ("timeout", "behave in"),
        "_exit": ("crash", "exited with 3"),
        "exit": ("crash", "enough"),
        "raise": ("error", "KeyError: 'missing column'"),
        "nan": ("nan", "returned nan"),
        "inf": ("nan", "returned inf"),
        "text": ("error", "no number"),
        "memory": ("error", "MemoryError"),
        "huge": ("error", "ValueError"),
    }
    good = {"print": 0.25, "flood": 0.75, "input": 0.0, "true": 1.0} | {
        str(i): float(i) for i in range(20)
    }
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    texts = [*bad, *good]
    random.Random(seed).shuffle(texts)
    with RewardPool([user("behave"), Reward("format")], workers=2, timeout_s=3.0) as pool:
        grades = pool.grade(items(*texts))
    for text, grade in zip(texts, grades, strict=True):
        if text in good:
            assert (grade.status, grade.total, grade.detail) == ("ok", good[text], ""), (
                text,
                grade,
            )
        else:
            status, detail = bad[text]
            assert (grade.status, grade.total) == (status, None), (text, grade)
            assert (
                detail in grade.detail
                and "user_rewards.py" in grade.detail
                and len(grade.detail) < 5000
            )
            assert grade.by_name["behave"] is None


@needs_proc
def test_a_kill_takes_the_whole_process_group(tmp_path):
    pids = tmp_path / "pids"
    with RewardPool([user("behave")], timeout_s=2.0) as pool:
        stubborn, fine = pool.grade(items("stubborn", "1", pids=str(pids)))
    assert (stubborn.status, fine.total) == ("timeout", 1.0)
    for pid in map(int, pids.read_text().split()):
        for _ in range(50):
            if not is_running(pid):
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"process {pid} is still there")


def test_order_does_not_depend_on_workers():
    texts = [str(i) for i in range(200)]
    with RewardPool([user("behave")], workers=2) as pool:
        first, second = pool.submit(items(*texts)), pool.submit(items(*reversed(texts)))
        assert [g.total for g in second.result()] == [float(t) for t in reversed(texts)]
        assert [g.total for g in first.result()] == [float(t) for t in texts]


def test_submit_does_not_wait():
    with RewardPool([user("behave")], timeout_s=1.0) as pool:
        start = time.perf_counter()
        pending = pool.submit(items("hang", "1"))
        assert time.perf_counter() - start < 0.5 and not pending.done()
        with pytest.raises(TimeoutError, match="2 of 2"):
            pending.result(timeout_s=0.01)
        assert [g.status for g in pending.result()] == ["timeout", "ok"]


def test_workers_import_neither_jax_nor_anything_heavy():
    with RewardPool([user("modules"), Reward("accuracy"), Reward("format")]) as pool:
        grade = pool.grade(items("<answer>7</answer>"))[0]
    assert grade.by_name["modules"] == 0.0


def test_workers_are_recycled():
    with RewardPool([user("process")], options=WorkerOptions(recycle_after=4)) as pool:
        pids = [grade.total for _ in range(3) for grade in pool.grade(items("a", "b", "c", "d"))]
    assert len(set(pids)) == 3 and pids[0] != os.getpid()


def test_a_function_that_fails_for_every_item_is_a_bug():
    with RewardPool([Reward("format"), user("always_raises")]) as pool:
        with pytest.raises(RewardError) as error:
            pool.grade(items("a", "b", "c"))
        single = pool.grade(items("a"))[0]  # one item proves nothing
    for part in (
        "always_raises",
        str(FILE),
        "all 3 items",
        "RuntimeError: I am broken",
        "Traceback",
    ):
        assert part in str(error.value)
    assert single.status == "error" and "I am broken" in single.detail


def test_one_example_that_always_fails_costs_only_its_samples():
    """A question hangs the grader, a row lacks a column: others were graded, the run goes on."""
    of = lambda question, *texts: [(Completion(text), Example(question)) for text in texts]
    with RewardPool([user("behave")], timeout_s=0.5) as pool:
        assert [g.status for g in pool.grade(of("a", "1", "2"))] == ["ok", "ok"]
        assert [g.status for g in pool.grade(of("b", "hang", "hang"))] == ["timeout", "timeout"]
        assert [g.status for g in pool.grade(of("c", "raise", "raise"))] == ["error", "error"]
        assert [g.status for g in pool.grade(of("d", "_exit") + of("e", "_exit"))] == [
            "crash",
            "crash",
        ]
        with pytest.raises(RewardError, match="failed for all 2 items"):
            pool.grade(of("f", "raise") + of("g", "raise"))  # of different questions: a bug
    with (
        RewardPool([user("behave")], timeout_s=0.5) as pool,
        pytest.raises(RewardError, match="took over"),
    ):
        pool.grade(of("b", "hang", "hang"))  # and nothing was ever graded


def test_a_function_that_always_exits_ends_early():
    with (
        RewardPool([user("behave")]) as pool,
        pytest.raises(RewardError, match=r"behave in .*exited with 3"),
    ):
        pool.grade(items(*["_exit"] * 500))


def test_a_file_that_does_not_load(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module_anywhere\ndef f(completion, example):\n    return 1.0\n")
    with RewardPool([Reward(f"{file}:f")]) as pool, pytest.raises(RewardError) as error:
        pool.grade(items("a"))
    assert "no_such_module_anywhere" in str(error.value) and str(file) in str(error.value)


def test_built_ins_grade_in_order():
    batch = [
        (
            Completion(f"<think>t</think><answer>{i % 10}</answer>"),
            Example("q", str(i % 7), "s", {}),
        )
        for i in range(500)
    ]
    with RewardPool([Reward("accuracy"), Reward("format")]) as pool:
        grades = pool.grade(batch)
    assert [g.by_name["accuracy"] for g in grades] == [float(i % 10 == i % 7) for i in range(500)]


def test_math_goes_through_the_pool():
    with RewardPool([Reward("accuracy")], timeout_s=5.0) as pool:
        grades = pool.grade(
            [
                (Completion(f"<answer>{a}</answer>"), Example(answer="2\\sqrt{2}"))
                for a in ("\\sqrt{8}", "9^{9^{9^9}}")
            ]
        )
    assert [g.total for g in grades] == [1.0, 0.0]


@needs_proc
def test_workers_end_with_a_killed_parent():
    code = (
        "import os, sys, time\nfrom jaxr1.rewards import *\n"
        "pool = RewardPool([Reward(sys.argv[1] + ':behave')], timeout_s=100)\n"
        "pool.submit([(Completion('hang'), Example())])\ntime.sleep(0.8)\n"
        "print(*(worker.process.pid for worker in pool._live), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(FILE)], stdout=subprocess.PIPE, text=True
    )
    (pid,) = done.stdout.split()
    for _ in range(100):
        if not is_running(pid):
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"worker {pid} outlives its parent")


@pytest.mark.parametrize("when", ["at the start", "when one is replaced"])
@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("no thread")])
def test_a_worker_that_cannot_be_started_ends_the_waiting(when, error, monkeypatch):
    """Descriptors, memory or threads run out: whoever waits is told, and nothing hangs."""

    def fails(*args, **kwargs):
        raise error

    if when == "at the start":
        monkeypatch.setattr(processes.subprocess, "Popen", fails)
    with RewardPool([user("behave")], workers=2) as pool:
        if when != "at the start":
            assert pool.grade(items("1"))[0].total == 1.0
            monkeypatch.setattr(processes.subprocess, "Popen", fails)
        pending = pool.submit(items(*["_exit"] * 8))
        with pytest.raises(
            RewardError, match=rf"behave in .*cannot be started: .*{error.args[-1]}"
        ):
            wait_for([pending], lambda: None)
        with pytest.raises(RewardError, match="cannot be started"):
            pool.submit(items("_exit", "2")).result(timeout_s=10.0)


def test_a_thread_that_is_gone_ends_the_waiting(monkeypatch):
    """Whatever takes the thread of a worker along, before or while somebody waits for it."""

    def leave(self, worker, chunk):
        raise SystemExit("gone")

    monkeypatch.setattr(RewardPool, "_grade_chunk", leave)
    with RewardPool([user("behave")]) as pool:
        with pytest.raises(RewardError, match=r"a thread of the reward pool failed: .*gone"):
            wait_for([pool.submit(items("1", "2"))], lambda: None)
        pool._threads[0].join(5.0)
        with pytest.raises(RewardError, match="a thread of the reward pool failed"):
            pool.submit(items("1", "2")).result(timeout_s=10.0)


def test_more_than_a_thousand_descriptors():
    """select() knows 1024 of them; a host with many devices and shards has more open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"this machine allows {hard} open files")
    opened = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
        opened += [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        with RewardPool([user("behave")], timeout_s=1.0) as pool:
            pending = pool.submit(items("1", "hang", "2"))
            grades = pending.result(timeout_s=60.0)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [g.total for g in grades] == [1.0, None, 2.0] and grades[1].status == "timeout"


def test_one_percent_of_hanging_items_cost_only_themselves(rng):
    """Of 400 items four hang, wherever they stand: the others are graded, in order."""
    texts = [str(i) for i in range(400)]
    hanging = {int(i) for i in rng.choice(400, 4, replace=False)}
    for i in hanging:
        texts[i] = "hang"
    with RewardPool([user("behave")], workers=2, timeout_s=1.0) as pool:
        began = time.monotonic()
        grades = pool.grade(items(*texts))
        took = time.monotonic() - began
    for i, grade in enumerate(grades):
        wanted = ("timeout", None) if i in hanging else ("ok", float(i))
        assert (grade.status, grade.total) == wanted
    # A second for each, and a new worker: with the others nothing is done twice.
    assert took < 60


def test_a_worker_that_reads_nothing_is_replaced(monkeypatch):
    """Items larger than a pipe are sent to a process that has been stopped."""
    monkeypatch.setattr("jaxr1.rewards.pool.SEND_SECONDS", 0.5)
    with RewardPool([user("behave")], timeout_s=30.0) as pool:
        assert pool.grade(items("1"))[0].total == 1.0
        (worker,) = pool._live
        os.kill(worker.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        grades = pool.grade(items("1", "2", text="x" * 10**6))
        assert time.monotonic() - began < 20
        assert [g.status for g in grades] == ["timeout", "ok"] and grades[1].total == 2.0
        assert "behave in" in grades[0].detail and "read nothing for 0.5 s" in grades[0].detail


def test_retries(tmp_path):
    """A judge that is away for a while costs time and no items; one that stays away costs them."""
    made = lambda *texts: items(*texts, folder=str(tmp_path))
    options = WorkerOptions(retries=3, retry_wait_s=0.05)
    with RewardPool([user("judge")], timeout_s=1.0, workers=2, options=options) as pool:
        # the whole first wave, before anything has ever been graded
        grades = pool.grade(made(*(f"raise|2|a{i}" for i in range(8))))
        assert [g.total for g in grades] == [0.5] * 8
        grades = pool.grade(made("hang|1|b", "_exit|1|c", "raise|3|d", "1|0|e", "nan|1|f"))
        assert [g.status for g in grades] == ["ok", "ok", "ok", "ok", "nan"]
        grades = pool.grade(made("raise|4|g", "1|0|h"))
        assert grades[0].status == "error" and "(tried 4 times)" in grades[0].detail
    with (
        RewardPool([user("judge")], timeout_s=1.0) as pool,
        pytest.raises(RewardError, match=r"judge in .* failed for all 8 items"),
    ):
        batch = [made(f"raise|2|i{i}")[0] for i in range(8)]
        pool.grade([(c, Example(f"q{i}", "7", "t", e.metadata)) for i, (c, e) in enumerate(batch)])


def test_items_that_are_tried_again_hold_nobody_up(tmp_path):
    options = WorkerOptions(retries=1, retry_wait_s=2.0)
    with RewardPool([user("judge")], options=options) as pool:
        pool.grade(items("1|0|a", folder=str(tmp_path)))
        began = time.monotonic()
        slow = pool.submit(items("raise|1|b", folder=str(tmp_path)))
        assert pool.grade(items("1|0|c", folder=str(tmp_path)))[0].total == 0.5
        assert time.monotonic() - began < 1.9 and not slow.done()
        assert slow.result()[0].total == 0.5 and time.monotonic() - began >= 2.0


def test_functions_of_lists():
    """One call for up to 64 items, beside a function of one item."""
    with RewardPool([user("all_at_once"), user("scaled"), user("all_awaited")]) as pool:
        grades = pool.grade(items(*map(str, range(100))))
    assert [g.by_name["all_at_once"] for g in grades] == [float(i) for i in range(100)]
    assert [g.by_name["scaled"] for g in grades] == [float(len(str(i))) for i in range(100)]
    assert [g.by_name["all_awaited"] for g in grades] == [float(i) for i in range(100)]


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("raise", "error", "KeyError: 'missing column'"),
        ("few", "error", "returned 1 values for 3 completions"),
        ("number", "error", "returned a float, which is no list of 3 numbers"),
        ("hang", "timeout", "took over 1 s"),
        ("_exit", "crash", "exited with 3"),
    ],
)
def test_a_call_for_all_items_that_fails(text, status, said):
    """It costs the items of that call, once; those of other calls are graded."""
    with RewardPool([user("all_at_once")], timeout_s=1.0) as pool:
        grades = pool.grade(items("1", "none", "nan", "text"))
        assert [g.status for g in grades] == ["ok", "ok", "nan", "error"]
        pool.grade(items("1", "2"))
        began = time.monotonic()
        lost = pool.submit(items("1", text, "2"))
        kept = pool.submit(items("3", "4"))
        assert [g.status for g in lost.result()] == [status] * 3
        assert all(said in g.detail and "all_at_once in" in g.detail for g in lost.result())
        assert [g.total for g in kept.result()] == [3.0, 4.0]
        assert time.monotonic() - began < 10


def test_functions_that_wait_for_each_other():
    """Awaited calls run at the same time, and each has its own deadline."""
    with RewardPool([user("waits")], timeout_s=1.5) as pool:
        pool.grade(items("0"))
        began = time.monotonic()
        grades = pool.grade(items(*["0.4"] * 32))
        assert [g.total for g in grades] == [0.4] * 32 and time.monotonic() - began < 0.4 * 16
        grades = pool.grade(items("0.1", "raise", "60", "0.2"))
        assert [g.status for g in grades] == ["ok", "error", "timeout", "ok"]
        assert "waits in" in grades[2].detail and "took over 1.5 s" in grades[2].detail
        # one that does not let others run takes them along
        assert [g.status for g in pool.grade(items("block", "0"))] == ["timeout", "timeout"]


def test_what_workers_may_use():
    """Memory, devices and the time to load are options."""
    with RewardPool([user("allowed")], options=WorkerOptions(memory_gib=3.0)) as pool:
        assert pool.grade(items("memory", "devices"))[0].total == 3.0
        assert pool.grade(items("devices"))[0].total == 0.0
    with RewardPool([user("allowed")], options=WorkerOptions(None, devices="2,3")) as pool:
        assert [g.total for g in pool.grade(items("memory", "devices"))] == [-1.0, 23.0]
    with (
        RewardPool([user("behave")], options=WorkerOptions(start_s=0.001)) as pool,
        pytest.raises(RewardError, match=r"loading the reward functions .*took over 0.001 s"),
    ):
        pool.grade(items("1"))
    for wrong, said in (
        (dict(memory_gib=0), "memory_gib must be over 0"),
        (dict(retries=-1), "retries must be at least 0"),
        (dict(devices=2), "devices must be str"),
        (dict(start_s=0), "start_s must be over 0"),
        (dict(recycle_after=0), "recycle_after must be at least 1"),
    ):
        with pytest.raises(ValueError, match=f"WorkerOptions.{said}"):
            WorkerOptions(**wrong)


def test_close_ends_what_is_waiting():
    pool = RewardPool([user("behave")], timeout_s=60.0)
    pending = pool.submit(items("hang"))
    time.sleep(0.5)
    pool.close()
    pool.close()
    with pytest.raises(RewardError, match="closed"):
        pending.result(timeout_s=5.0)
    with pytest.raises(RewardError, match="closed"):
        pool.submit(items("1"))


def test_bad_arguments():
    with pytest.raises(ValueError, match="two rewards are called format"):
        RewardPool([Reward("format"), Reward("format")])
    with pytest.raises(ValueError, match="at least one"):
        RewardPool([])
    with RewardPool([Reward("format")]) as pool, pytest.raises(ValueError, match=r"item 1: .*JSON"):
        pool.submit([*items("a"), (Completion("a"), Example(metadata={"x": object()}))])
