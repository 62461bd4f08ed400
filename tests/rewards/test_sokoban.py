"""Sokoban plans: what each step pays, when the play ends, bonus terms, and the form."""

import numpy as np
import pytest

from jaxr1.rewards.sokoban import Board, plan_term, played, repeats, sokoban_reward
from jaxr1.rewards.types import Completion, Example

SMALL = ["#######", "#@ $ .#", "#  $ .#", "#######"]
WON = ["right", "right", "right", "left", "left", "left", "down", "right", "right", "right"]


def said(moves, thought="I push", end="</answer>"):
    return Completion(f"<think>{thought}</think><answer>{', '.join(moves)}{end}")


def reward(moves, board=SMALL, **more):
    return sokoban_reward(said(moves, **more), Example(metadata={"board": board}))


def brute(board, moves):
    """The game by the letter on an array, without a look at the class."""
    grid = np.array([[*row] for row in board])
    targets = np.isin(grid, list(".*+"))
    boxes = np.isin(grid, list("$*"))
    walls = grid == "#"
    r, c = np.argwhere(np.isin(grid, list("@+")))[0]
    steps = dict(up=(-1, 0), down=(1, 0), left=(0, -1), right=(0, 1))
    total, best = 0.0, 0.0
    for name in moves[:50]:
        dr, dc = steps[name]
        before = (boxes & targets).sum()
        if boxes[r + dr, c + dc] and not (
            walls[r + 2 * dr, c + 2 * dc] or boxes[r + 2 * dr, c + 2 * dc]
        ):
            boxes[r + dr, c + dc], boxes[r + 2 * dr, c + 2 * dc] = False, True
        if not (walls[r + dr, c + dc] or boxes[r + dr, c + dc]):
            r, c = r + dr, c + dc
        after = (boxes & targets).sum()
        done = after == targets.sum()
        paid = -0.1 + (after - before) + 10.0 * done
        total += paid
        best = max(best, total)
        if done or paid > 3:
            break
    return best


def test_random_plans_are_worth_what_the_rules_say(rng):
    """Against a second implementation, on random boards."""
    names = ["up", "down", "left", "right"]
    for _ in range(300):
        grid = np.full((6, 7), "#", object)
        grid[1:-1, 1:-1] = np.where(rng.random((4, 5)) < 0.15, "#", " ")
        places = [tuple(p) for p in np.argwhere(grid == " ")]
        if len(places) < 6:
            continue
        rng.shuffle(places)
        for place, sign in zip(places, ("@", "$", "$", ".", "."), strict=False):
            grid[place] = sign
        board = ["".join(row) for row in grid]
        moves = [str(m) for m in rng.choice(names, int(rng.integers(1, 90)))]
        assert played(Board.read(board), moves) == pytest.approx(brute(board, moves))


def test_a_won_game_and_its_parts():
    """The winning push pays 10.9 and ends the play."""
    found = reward(WON)
    # ten moves at -0.1, two boxes on targets, all of them on
    assert found["play"] == pytest.approx(-1.0 + 2 + 10)
    assert found["plan"] == pytest.approx(0.5) and found["format"] == 1
    assert found["thinking"] == pytest.approx(0.001)  # "I" is too short
    assert found["score"] == pytest.approx(11 + 0.5 + 0.5 + 0.001)
    assert reward([*WON, "left", "left"])["play"] == found["play"]
    # cells as gym-sokoban has them
    numbers = [["# .*$@".index(sign) for sign in row] for row in SMALL]
    assert reward(WON, board=numbers)["play"] == found["play"]
    assert reward(WON, board="\n".join(SMALL))["play"] == found["play"]


def test_only_fifty_moves_are_made_and_the_best_sum_counts():
    idle = ["left", "up"] * 25
    assert reward([*idle, *WON])["play"] == 0.0
    assert reward([*idle[:40], *WON])["play"] == pytest.approx(-4.0 + 11)
    pushed = ["right", "right", "right"]  # a box on its target: 0.7
    assert reward([*pushed, "left", "left"])["play"] == pytest.approx(0.7)


def test_the_plan_term_and_its_penalty_for_repeats():
    steps = ["up", "up", "left", "down", "right", "right", "down", "left", "up", "down"]
    for n in (1, 19, 20, 35, 50, 80):
        moves = (steps * 9)[:n]
        want = 0.05 * n if n < 20 else 1 - 0.2 * ((n - 20) / 30) ** 2
        assert plan_term(moves) == pytest.approx(want)
    assert not repeats(["up"] * 7) and repeats(["up"] * 8)
    assert not repeats(["up", "down"] * 7) and repeats([*["up", "down"] * 8, "left"])
    assert repeats(["up", "up", "left", "down", "right"] * 8)
    assert not repeats(["up", "up", "left", "down", "right", "right"] * 9)  # six moves
    assert plan_term(["up"] * 8) == pytest.approx(min(0, 0.4 - 0.2))
    assert plan_term(["up"] * 3 + ["left", "right"] * 20) == 0.0
    assert plan_term(["up"] * 100) == pytest.approx(1 - 0.2 * (80 / 30) ** 2 - 0.2)


def test_thinking_is_counted_up_to_two_hundred_words():
    assert reward(["up"], thought="go " * 500)["thinking"] == pytest.approx(0.2)
    assert reward(["up"], thought="a b c go on")["thinking"] == pytest.approx(0.002)


@pytest.mark.parametrize(
    "text",
    [
        "<think>x</think><answer>right, push</answer>",
        "<think>x</think><answer></answer>",
        "<think>x</think><answer>right",
        "<answer>right</answer>",
        "<think>x</think><think>x</think><answer>right</answer>",
        "right",
    ],
)
def test_a_wrong_form_is_worth_nothing_at_all(text):
    """Neither the play nor the bonus terms count."""
    found = sokoban_reward(Completion(text), Example(metadata={"board": SMALL}))
    assert set(found.values()) == {0.0}


def test_rows_without_a_board_say_so():
    with pytest.raises(ValueError, match="no column 'board'"):
        sokoban_reward(said(["up"]), Example())
    with pytest.raises(ValueError, match="one player and as many targets as boxes"):
        reward(["up"], board=["####", "#@$#", "####"])
    with pytest.raises(ValueError, match="a number from 0 to 5, got 7"):
        reward(["up"], board=[[0, 7]])
