"""Sokoban with the whole plan in one answer, as LMM-R1 trains it (arXiv:2503.07536).

board   #####     # wall        . target    * box on a target      cells of gym-sokoban:
        #@$.#     $ box         @ player    + player on a target   0 wall  1 floor  2 target
        #####     else floor                                       3 box on target 4 box 5 player

answer  right, ...            total = best + 0.5 format + plan term + thinking term
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxr1.rewards.format import TAGS
from jaxr1.rewards.reading.answers import ANSWER_CLOSE, ANSWER_OPEN
from jaxr1.rewards.types import Completion, Example

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
SIMULATED = 50  # moves of a plan that are made
STEP, ON, OFF, SOLVED = -0.1, 1.0, -1.0, 10.0
ENOUGH = 3.0  # a single step that pays more ends the play
FORMAT = 0.5
PLAN_MOVES, PLAN_STEP, PLAN_FALL, PLAN_SPAN = 20, 0.05, 0.2, 30
MOST_REPEATS, LONGEST_GRAM, REPEAT_COST = 7, 5, 0.2
WORD, MOST_WORDS = 0.001, 200

Place = tuple[int, int]


@dataclass
class Board:
    """A position.

    Attributes:
      walls, targets, boxes: (row, column) of each.
      player: where the player stands.
    """

    walls: frozenset[Place]
    targets: frozenset[Place]
    boxes: set[Place]
    player: Place

    @classmethod
    def read(cls, value: Any) -> Board:
        """A board of XSB text (one string, or a string a row), or of gym-sokoban's numbers.

        Raises:
          ValueError: neither, or not one player and as many targets as boxes.
        """
        rows = value.splitlines() if isinstance(value, str) else list(value)
        signs: dict[str, set[Place]] = {sign: set() for sign in "#.$*@+"}
        for r, row in enumerate(rows):
            cells = row if isinstance(row, str) else [_sign(cell) for cell in row]
            for c, sign in enumerate(cells):
                signs.setdefault(sign, set()).add((r, c))
        players = signs["@"] | signs["+"]
        targets, boxes = signs["."] | signs["*"] | signs["+"], signs["$"] | signs["*"]
        if len(players) != 1 or not boxes or len(targets) != len(boxes):
            raise ValueError(
                f"a Sokoban board has one player and as many targets as boxes, got {len(players)} "
                f"players, {len(targets)} targets and {len(boxes)} boxes"
            )
        return cls(frozenset(signs["#"]), frozenset(targets), boxes, players.pop())

    def move(self, name: str) -> float:
        """Moves, and pushes a box where one is in the way; what the step pays."""
        step = MOVES[name]
        ahead = _next(self.player, step)
        if ahead in self.walls:
            return STEP
        paid = STEP
        if ahead in self.boxes:
            behind = _next(ahead, step)
            if behind in self.walls or behind in self.boxes:
                return STEP
            self.boxes.remove(ahead)
            self.boxes.add(behind)
            paid += ON * (behind in self.targets) + OFF * (ahead in self.targets)
            if self.boxes == self.targets:
                paid += SOLVED
        self.player = ahead
        return paid


def _sign(cell: Any) -> str:
    try:
        return "# .*$@"[int(cell)]
    except (TypeError, ValueError, IndexError):
        raise ValueError(
            f"a cell of a Sokoban board is a number from 0 to 5, got {cell!r}"
        ) from None


def _next(place: Place, step: Place) -> Place:
    return place[0] + step[0], place[1] + step[1]


def sokoban_reward(
    completion: Completion, example: Example, *, column: str = "board"
) -> dict[str, float]:
    """What a whole plan is worth: the play, the form, the plan's length, words of the thought.

    Where the form is wrong the total is 0: a tag that is not there exactly once, or an item of the
    answer that is no move.

    Args:
      completion: its answer block lists moves, "right, up, ...".
      example: `metadata[column]` is the board, as `Board.read` takes it.
      column: of the row, which holds the board.

    Returns:
      {"score", "play", "format", "plan", "thinking"}.

    Raises:
      ValueError: the row has no board, or one that cannot be played.
    """
    if column not in example.metadata:
        raise ValueError(f"the row has no column {column!r} with a Sokoban board")
    board = Board.read(example.metadata[column])
    moves = plan_of(completion.text)
    if moves is None:
        return {"score": 0.0, "play": 0.0, "format": 0.0, "plan": 0.0, "thinking": 0.0}
    parts = {
        "play": played(board, moves),
        "format": 1.0,
        "plan": plan_term(moves),
        "thinking": thinking_term(completion.text),
    }
    total = parts["play"] + FORMAT * parts["format"] + parts["plan"] + parts["thinking"]
    return {"score": total, **parts}


def plan_of(text: str) -> list[str] | None:
    """The moves of an answer; None where a tag is not there once, or an item is no move."""
    if any(text.count(tag) != 1 for tag in TAGS):
        return None
    begin, end = text.find(ANSWER_OPEN) + len(ANSWER_OPEN), text.find(ANSWER_CLOSE)
    items = [item.strip().lower() for item in text[begin:end].split(",")]
    return items if all(item in MOVES for item in items) else None


def played(board: Board, moves: Sequence[str]) -> float:
    """The largest sum of what the steps so far have paid, 0 before the first one.

    The first 50 moves are made; the play ends when all boxes are on targets, or with a step that
    pays more than 3.
    """
    total = best = 0.0
    for name in moves[:SIMULATED]:
        paid = board.move(name)
        total += paid
        best = max(best, total)
        if board.boxes == board.targets or paid > ENOUGH:
            break
    return best


def plan_term(moves: Sequence[str]) -> float:
    """0.05 for each of up to 20 moves, less for longer plans; hardly anything for one that repeats.

    All moves count, those too that are not made.
    """
    count = len(moves)
    term = PLAN_STEP * count
    if count >= PLAN_MOVES:
        term = 1.0 - PLAN_FALL * ((count - PLAN_MOVES) / PLAN_SPAN) ** 2
    return min(0.0, term - REPEAT_COST) if repeats(moves) else term


def repeats(moves: Sequence[str]) -> bool:
    """Whether a run of up to 5 moves stands more than 7 times in a row."""
    for size in range(1, LONGEST_GRAM + 1):
        same = 0  # moves in a row that equal the one `size` before
        for one, other in zip(moves[size:], moves, strict=False):
            same = same + 1 if one == other else 0
            if same >= size * MOST_REPEATS:
                return True
    return False


def thinking_term(text: str) -> float:
    """0.001 for each word of the thought that is longer than a character, up to 200 of them."""
    thought = text[text.find(TAGS[0]) + len(TAGS[0]) : text.find(TAGS[1])]
    words = [word for word in thought.split() if len(word) > 1]
    return WORD * min(len(words), MOST_WORDS)


def sokoban_reading(completion: Completion, example: Example, *, column: str = "board") -> str:
    """What the reward reads in a completion, for a message; arguments as of it."""
    moves = plan_of(completion.text)
    if moves is None:
        return f"finds no plan: {' '.join(TAGS)} once each, and moves between commas"
    return f"reads {len(moves)} moves, the first {SIMULATED} of which are made"
