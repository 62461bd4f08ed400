"""Reward functions for the tests of the pool, to be run in workers only.

What one does depends on the completion's text.
"""

import os
import subprocess
import sys
import time


def behave(completion, example):
    text = completion.text
    if text == "hang":
        time.sleep(600)
    if text == "stubborn":  # ignores SIGTERM and leaves a child behind
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(example.metadata["pids"], "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        while True:
            time.sleep(1)
    if text == "_exit":
        os._exit(3)
    if text == "exit":
        sys.exit("enough")
    if text == "raise":
        raise KeyError("missing column")
    if text == "nan":
        return float("nan")
    if text == "inf":
        return float("inf")
    if text == "text":
        return "0.5"
    if text == "memory":
        return float(len(bytearray(64 * 2**30)))
    if text == "print":
        print('{"id": 0, "values": [9.0]}')
        os.write(1, b"raw bytes on descriptor one\n")
        subprocess.run(["echo", "from a child"], check=True)
        return 0.25
    if text == "flood":
        for _ in range(200):
            print("x" * 100_000)
        return 0.75
    if text == "input":
        return float(len(sys.stdin.read()))
    if text == "huge":
        raise ValueError("y" * 10_000_000)
    if text == "none":
        return None
    if text == "true":
        return True
    return float(text)


def modules(completion, example):
    """1.0 if jax (or anything as heavy) has been imported here."""
    heavy = [
        name
        for name in ("jax", "jaxlib", "flax", "numpy", "torch", "sympy", "rich")
        if name in sys.modules
    ]
    assert "jaxr1" in sys.modules
    return float(len(heavy))


def process(completion, example):
    return float(os.getpid())


def always_raises(completion, example):
    raise RuntimeError("I am broken")


def scaled(completion, example, *, scale=1.0):
    return scale * len(completion.text)


def one_argument(completion):
    return 0.0


async def waits(completion, example):
    """Sleeps as long as the text says, and returns it."""
    import asyncio

    if completion.text == "raise":
        raise ConnectionError("the judge is away")
    if completion.text == "block":
        time.sleep(600)
    await asyncio.sleep(float(completion.text))
    return float(completion.text)


def all_at_once(completions, examples):
    """The numbers of the texts; what a text says otherwise happens to the whole call."""
    texts = [completion.text for completion in completions]
    assert len(texts) == len(examples)
    if "few" in texts:
        return [0.0]
    if "number" in texts:
        return 0.0
    return [behave(c, e) for c, e in zip(completions, examples, strict=True)]


async def all_awaited(completions, examples):
    return [float(completion.text) for completion in completions]


def judge(completion, example):
    """ "raise|2|name": that happens at the first two tries of the item; then it gets 0.5."""
    kind, count, name = completion.text.split("|")
    with open(os.path.join(example.metadata["folder"], name), "a+") as file:
        before = file.tell()
        file.write("x")
    return behave(type(completion)(kind), example) if before < int(count) else 0.5


def allowed(completion, example):
    """The address space in GiB (-1: no limit), or the visible devices as digits."""
    import resource

    if completion.text == "memory":
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        return -1.0 if limit == resource.RLIM_INFINITY else limit / 2**30
    seen = os.environ["CUDA_VISIBLE_DEVICES"].replace(",", "")
    return float(seen or 0)


not_a_function = 3
