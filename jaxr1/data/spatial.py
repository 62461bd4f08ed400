"""Built-in data: spatial scenes drawn with Pillow, asked about as in SAT and CV-Bench."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from jaxr1.data.arithmetic import SPLITS, Split, check_stream
from jaxr1.data.choices import shuffle_options, with_options
from jaxr1.data.example import DataError, Dataset, Example

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (31, 80, 200),
    "yellow": (240, 200, 20),
    "purple": (140, 60, 170),
    "orange": (250, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "diamond")

_STREAM = 0x59A7  # keeps this data set's random draws apart from those of others with the same seed
_HORIZON = 0.35  # height of the horizon in depth scenes, as a share of the picture
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class _Thing:
    """A shape in a scene; x, y (downwards) and radius in shares of the picture's side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class _Scene:
    """What a picture shows and what is asked about it.

    Attributes:
      things: in drawing order: later ones hide earlier ones.
      question: without its options.
      options: the answers to choose from, not yet shuffled.
      correct: the right one of them.
      thought: a sentence that leads to it.
      ground: whether there is a ground with a horizon.
    """

    things: list[_Thing]
    question: str
    options: list[str]
    correct: str
    thought: str
    ground: bool = False


@dataclass(frozen=True)
class Spatial:
    """Scenes of coloured shapes; a question has shuffled options with letters, its answer is one.

    Tasks: "relation" (left, right, above or below; four options), "count" (how many of a kind; four
    options), "depth" (which of two things of one size on the ground is closer: larger, lower, in
    front) and "distance" (which of two things is closer to a third).

    Example i is a pure function of (seed, split, start + i) and `tasks`; the splits draw from
    different streams.

    Attributes:
      count: how many examples.
      split: "train" or "test".
      seed: of the whole stream.
      start: row of the stream to begin with, so that stages can use disjoint rows of one stream.
      worked: give every example a `response` with a one-sentence thought and the letter.
      tasks: which of `TASKS` to ask for, drawn evenly.
      size: height and width of a picture, in pixels.
      blank: leave the pictures white but keep questions and answers: a control that must stay at
        chance.
    """

    count: int
    split: Split = "train"
    seed: int = 0
    start: int = 0
    worked: bool = False
    tasks: tuple[str, ...] = ("relation", "count", "depth", "distance")
    size: int = 112
    blank: bool = False

    def load(self) -> Dataset:
        """The examples; each picture is drawn when its example is asked for.

        Raises:
          DataError: an option is out of range.
        """
        check_stream(self.count, self.split, self.seed, self.start)
        for task in self.tasks:
            if task not in _TASKS:
                raise DataError(f"tasks: unknown {task!r}; known are {', '.join(TASKS)}")
        if not self.tasks:
            raise DataError(f"tasks: none; known are {', '.join(TASKS)}")
        if not 28 <= self.size <= 2048:
            raise DataError(f"size must be 28 to 2048 pixels, got {self.size}")
        name = f"spatial-{self.split}" + ("-blank" if self.blank else "")
        return Dataset(name, self.count, lambda i: self._example(self.start + i))

    def _example(self, row: int) -> Example:
        rng = np.random.default_rng([_STREAM, self.seed, SPLITS.index(self.split), row])
        task = self.tasks[int(rng.integers(len(self.tasks)))]
        scene = _TASKS[task](rng)
        choices, letter = shuffle_options(scene.options, scene.correct, rng)
        picture = np.full((self.size, self.size, 3), 255, np.uint8)
        if not self.blank:
            picture = _draw(scene, self.size, rng)
        response = f"<think>{scene.thought}</think>\n<answer>{letter}</answer>"
        parts = [
            {"type": "image", "image": picture},
            {"type": "text", "text": with_options(scene.question, choices)},
        ]
        return Example(
            messages=({"role": "user", "content": parts},),
            answer=letter,
            response=response if self.worked else None,
            source=f"spatial-{self.split}:{row + 1}",
            metadata={
                "task": task,
                "choices": choices,
                "answer_text": scene.correct,
                "things": [[thing.name, thing.x, thing.y, thing.radius] for thing in scene.things],
            },
        )


def _kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Different (colour, shape) pairs."""
    colours = tuple(COLOURS)
    picked = rng.choice(len(colours) * len(SHAPES), size=count, replace=False)
    return [(colours[k // len(SHAPES)], SHAPES[k % len(SHAPES)]) for k in picked]


def _relation(rng: np.random.Generator) -> _Scene:
    first, second = _kinds(rng, 2)
    correct = list(_DIRECTIONS)[int(rng.integers(4))]
    along = np.array(_DIRECTIONS[correct], float)
    gap = rng.uniform(0.32, 0.6)
    # Sideways by less than half the gap: the asked relation is the plain one to see.
    offset = along * gap + along[::-1] * rng.uniform(-0.35, 0.35) * gap
    room = 0.5 - np.abs(offset) / 2 - 0.13
    middle = 0.5 + rng.uniform(-room, room)
    radius = rng.uniform(0.08, 0.12, size=2)
    a, b = middle + offset / 2, middle - offset / 2
    things = [
        _Thing(*first, float(a[0]), float(a[1]), float(radius[0])),
        _Thing(*second, float(b[0]), float(b[1]), float(radius[1])),
    ]
    names = [thing.name for thing in things]
    place = {"left": "left of", "right": "right of"}.get(correct, correct)
    return _Scene(
        things,
        f"Where is the {names[0]} compared to the {names[1]}?",
        list(_DIRECTIONS),
        correct,
        f"The {names[0]} is {place} the {names[1]}.",
    )


def _count(rng: np.random.Generator) -> _Scene:
    target, *others = _kinds(rng, 4)
    number = int(rng.integers(1, 6))
    kinds = [target] * number
    kinds += [others[int(k)] for k in rng.integers(3, size=int(rng.integers(1, 5)))]
    # One thing to a cell of a 4 x 4 grid: nothing overlaps.
    cells = rng.choice(16, size=len(kinds), replace=False)
    things = []
    for kind, cell in zip(kinds, cells, strict=True):
        x, y = (np.array([cell % 4, cell // 4]) + 0.5) / 4 + rng.uniform(-0.03, 0.03, size=2)
        things.append(_Thing(*kind, float(x), float(y), float(rng.uniform(0.065, 0.09))))
    # Four neighbouring numbers with the right one anywhere among them, so that it is not always a
    # middle one.
    lowest = max(0, number - int(rng.integers(4)))
    name, plural = " ".join(target), "" if number == 1 else "s"
    return _Scene(
        things,
        f"How many {name}s are in the picture?",
        [str(lowest + k) for k in range(4)],
        str(number),
        f"I see {number} {name}{plural}.",
    )


def _depth(rng: np.random.Generator) -> _Scene:
    near_kind, far_kind = _kinds(rng, 2)
    near_scale = rng.uniform(0.85, 1.05)
    far_scale = near_scale * rng.uniform(0.45, 0.7)
    near_x = rng.uniform(0.2, 0.8)
    far_x = near_x
    while abs(far_x - near_x) < 0.12:  # the nearer one may hide a part of the other, never all
        far_x = rng.uniform(0.12, 0.88)
    things = []
    for kind, x, scale in ((far_kind, far_x, far_scale), (near_kind, near_x, near_scale)):
        # One real size seen in perspective: radius and distance below the horizon shrink alike.
        radius = 0.16 * scale
        y = _HORIZON + 0.55 * scale - radius
        things.append(_Thing(*kind, float(x), float(y), float(radius)))
    far, near = things
    names = [f"the {near.name}", f"the {far.name}"]
    asked = [names[k] for k in rng.permutation(2)]
    return _Scene(
        things,
        f"Which is closer to the camera, {asked[0]} or {asked[1]}?",
        names,
        names[0],
        f"The {near.name} is larger and lower, so it is closer.",
        ground=True,
    )


def _distance(rng: np.random.Generator) -> _Scene:
    kinds = _kinds(rng, 3)
    while True:
        centre = rng.uniform(0.25, 0.75, size=2)
        angle = rng.uniform(0, 2 * np.pi, size=2)
        near_gap = rng.uniform(0.22, 0.32)
        gap = np.array([near_gap, near_gap * rng.uniform(1.5, 2.2)])
        ends = centre + gap[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        if ends.min() > 0.1 and ends.max() < 0.9 and np.linalg.norm(ends[0] - ends[1]) > 0.24:
            break
    points = [centre, *ends]
    things = [
        _Thing(*kind, float(x), float(y), float(rng.uniform(0.07, 0.09)))
        for kind, (x, y) in zip(kinds, points, strict=True)
    ]
    anchor, near, far = (thing.name for thing in things)
    asked = [(near, far)[k] for k in rng.permutation(2)]
    return _Scene(
        things,
        f"Which is closer to the {anchor}, the {asked[0]} or the {asked[1]}?",
        [f"the {near}", f"the {far}"],
        f"the {near}",
        f"The {near} is closer to the {anchor} than the {far}.",
    )


_TASKS: Mapping[str, Callable[[np.random.Generator], _Scene]] = {
    "relation": _relation,
    "count": _count,
    "depth": _depth,
    "distance": _distance,
}
TASKS: tuple[str, ...] = tuple(_TASKS)


def _draw(scene: _Scene, size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8[size, size, 3]; drawn at twice the size and averaged, for smooth edges."""
    side = 2 * size
    light = tuple(int(value) for value in rng.integers(225, 251, size=3))
    image = Image.new("RGB", (side, side), light)
    canvas = ImageDraw.Draw(image)
    if scene.ground:
        tone = tuple(int(value) - 70 for value in rng.integers(225, 251, size=3))
        canvas.rectangle((0, round(_HORIZON * side), side, side), fill=tone)
    for thing in scene.things:
        _draw_thing(canvas, thing, side)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def _draw_thing(canvas: ImageDraw.ImageDraw, thing: _Thing, side: int) -> None:
    """Draws a thing on a square canvas of `side` pixels."""
    x, y, r = thing.x * side, thing.y * side, thing.radius * side
    fill = COLOURS[thing.colour]
    outline = tuple(value // 2 for value in fill)  # tells things apart where they overlap
    if thing.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=outline, width=2)
        return
    if thing.shape == "square":
        box = (x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + r)
        canvas.rectangle(box, fill=fill, outline=outline, width=2)
        return
    corners = [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
    if thing.shape == "triangle":
        corners = [(x, y - r), (x + r, y + r), (x - r, y + r)]
    canvas.polygon(corners, fill=fill, outline=outline, width=2)
