"""A service that grades: a server of this process that answers well, badly, late or not at all."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jaxr1.rewards import Completion, Example, Reward, RewardPool, WorkerOptions
from jaxr1.rewards.remote import Unanswered, remote_reward


class Service:
    """What the server does with the next requests, and what it was asked."""

    def __init__(self):
        self.script, self.asked, self.open, self.most = [], [], 0, 0
        self.lock = threading.Lock()

    def answer(self, request):
        pairs = zip(request["query"], request["labels"], strict=True)
        right = [float(f"<answer>{label}</answer>" in query) for query, label in pairs]
        form = [float("<think>" in query) for query in request["query"]]
        rewards = [0.5 * f + r for f, r in zip(form, right, strict=True)]
        return {"rewards": rewards, "format_rewards": form, "acc_rewards": right, "model": "rules"}


@contextlib.contextmanager
def serving(service):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with service.lock:
                service.open += 1
                service.most = max(service.most, service.open)
                act = service.script.pop(0) if service.script else "well"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.asked.append((self.path, request))
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.act(act, request)
            finally:
                with service.lock:
                    service.open -= 1

        def act(self, act, request):
            body = json.dumps(service.answer(request)).encode()
            status = 200
            if isinstance(act, tuple):
                status, body = act
            elif act == "slow":
                time.sleep(0.3)
            elif act == "silent":
                time.sleep(2.0)
            elif act == "hangs up":
                self.close_connection = True
                return
            self.send_response(status)
            size = len(body) + (10 if act == "cut" else 0)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if act == "drips":
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    self.wfile.flush()
                    time.sleep(0.05)
                return
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/get_reward"
    finally:
        server.shutdown()
        server.server_close()


def made(count):
    """Responses of which every second one is right, and every third one has the form."""
    items = []
    for i in range(count):
        answer = f"<answer>{i if i % 2 else 'no'}</answer>"
        text = f"<think>so</think>{answer}" if i % 3 == 0 else answer
        items.append((Completion(text, "stop"), Example(f"question {i}", str(i))))
    return items


def want(i):
    return 0.5 * (i % 3 == 0) + (i % 2)


def test_a_service_grades_and_its_components_are_logged():
    service = Service()
    with (
        serving(service) as url,
        RewardPool([Reward(url, 2.0), Reward("format")], workers=2) as pool,
    ):
        grades = pool.grade(made(150))
    for i, grade in enumerate(grades):
        assert grade.by_name["remote"] == want(i)
        assert grade.by_name["remote/acc_rewards"] == i % 2
        assert grade.by_name["remote/format_rewards"] == (i % 3 == 0)
        assert set(grade.by_name) == {
            "remote",
            "remote/acc_rewards",
            "remote/format_rewards",
            "format",
        }
    paths, requests = zip(*service.asked, strict=True)
    assert set(paths) == {"/get_reward"} and service.most <= 2  # one for each worker
    assert all(len(request["query"]) <= 64 for request in requests)
    first = next(request for request in requests if "question 0" in request["prompts"])
    at = first["prompts"].index("question 0")
    assert first["labels"][at] == "0"
    assert first["query"][at] == (
        "<|im_start|>user\nquestion 0<|im_end|>\n<|im_start|>assistant\n"
        "<think>so</think><answer>no</answer><|im_end|>"
    )


def asked(url, **options):
    completions, examples = zip(*made(3), strict=True)
    return remote_reward(completions, examples, url=url, wait_s=0.05, **options)["rewards"]


@pytest.mark.parametrize("act", [(503, b"busy"), (429, b"slowly"), "hangs up", "cut", "slow"])
def test_what_passes_is_tried_again(act):
    service = Service()
    service.script = [act, act]
    with serving(service) as url:
        assert asked(url) == [want(i) for i in range(3)]
        assert len(service.asked) == (1 if act == "slow" else 3)
        if act != "slow":
            service.script = [act] * 4
            with pytest.raises(Unanswered, match=r"get_reward gave no answer in 2 tries; the last"):
                asked(url, retries=1)


def test_retries_wait_longer_each_time():
    service = Service()
    service.script = [(500, b"no")] * 3
    with serving(service) as url:
        began = time.monotonic()
        asked(url, retries=3)  # 0.05 + 0.1 + 0.2
        assert 0.35 <= time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ((400, b"no queries"), "refuses the request with status 400: no queries"),
        ((404, b""), "refuses the request with status 404"),
        ((200, b"<html>"), "answers with what is no JSON: b'<html>'"),
        ((200, b"[1, 2, 3]"), "answers without a list 'rewards'"),
        ((200, b'{"scores": [1]}'), "answers without a list 'rewards'"),
        ((200, b'{"rewards": [1, 2]}'), "answers with 2 rewards to 3 queries"),
        ((200, b'{"rewards": [1, "2", 3]}'), "the reward '2', which is no number"),
        ((200, b'{"rewards": [1, NaN, 3]}'), "the reward nan, which is no number"),
        ((200, b'{"rewards": [1, [2], 3]}'), "which is no number"),
    ],
)
def test_wrong_answers_are_said_at_once(act, said):
    service = Service()
    service.script = [act]
    with serving(service) as url:
        with pytest.raises(Unanswered, match="get_reward (.* )?" + said.replace("[", r"\[")):
            asked(url)
        assert len(service.asked) == 1


@pytest.mark.parametrize("act", ["silent", "drips"])
def test_a_service_that_is_late_is_left(act):
    service = Service()
    service.script = [act] * 3
    with serving(service) as url:
        began = time.monotonic()
        with pytest.raises(
            Unanswered, match=r"get_reward gave no answer in 0.5 s; the last try: Tim"
        ):
            asked(url, timeout_s=0.5)
        assert time.monotonic() - began < 1.5


def test_none_is_no_opinion():
    service = Service()
    service.script = [(200, b'{"rewards": [1, null, 0.5]}')]
    with serving(service) as url, RewardPool([Reward(url)]) as pool:
        assert [grade.total for grade in pool.grade(made(3))] == [1.0, None, 0.5]


def test_a_service_that_is_away_costs_its_items_and_no_more():
    service = Service()
    with serving(service) as url:
        options = {"retries": 0, "timeout_s": 2.0}
        with RewardPool([Reward(url, options=options)]) as pool:
            assert pool.grade(made(2))[1].total == want(1)
            service.script = [(500, b"out of memory")]
            lost = pool.grade([made(1)[0]])
            assert lost[0].status == "error" and "status 500: out of memory" in lost[0].detail
            assert url in lost[0].detail
        service.script = [(500, b"no")]
        workers = WorkerOptions(retries=1, retry_wait_s=0.05)
        with RewardPool([Reward(url, options=options)], options=workers) as pool:
            assert pool.grade(made(1))[0].total == want(0)
    with pytest.raises(Unanswered, match="Connection refused"):
        asked(url)


def test_options():
    reward = Reward("http://host:1/get", options={"retries": 5})
    assert reward.function == "remote" and reward.label == "remote"
    assert dict(reward.options) == {"url": "http://host:1/get", "retries": 5}
    assert Reward("remote", options=dict(reward.options)).options == reward.options
    with pytest.raises(ValueError, match="'remote' needs the option 'url', a string"):
        Reward("remote")
    with pytest.raises(ValueError, match="has no option 'retry'"):
        Reward("http://host:1/get", options={"retry": 5})
    with pytest.raises(ValueError, match="url must begin with http"):
        asked("host:1")
    with pytest.raises(ValueError, match="timeout_s must be over 0"):
        asked("http://host:1", timeout_s=0.0)
