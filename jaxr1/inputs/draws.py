"""The order in which a stage meets its examples, and what becomes of those that cannot be used.

Draws are encoded ahead of the step that takes them; what is wrong with one is told, and written
down, when it is its turn.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxr1.data.example import DataError, Dataset, Example, refusal
from jaxr1.inputs.ahead import Ahead
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw, LeftOut, share
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import TooLong
from jaxr1.inputs.template import Prompt, PromptError, check_text
from jaxr1.media.images import MediaError
from jaxr1.parallel import host_count, host_index, owner

NEEDS = {
    "response": "a supervised stage needs one (or a final assistant turn)",
    "chosen": "a preference stage needs one (or a final assistant turn)",
    "rejected": "a preference stage needs one",
}


class Unfit(ValueError):
    """An example that could be encoded, and is left out for another reason."""


class Draws(contextlib.AbstractContextManager):
    """A data set in a seeded order without end; position i is a function of (seed, i).

    Rows that cannot be used are passed over and reported once: `on_drop(source, reason)`. A context
    manager, whose end is that of the threads which encode.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: Processor,
        *,
        seed: int,
        max_prompt_tokens: int,
        max_response_tokens: int = 0,
        max_patches: int | None = None,
        with_response: bool = False,
        with_rejected: bool = False,
        with_prompt: bool = False,
        on_drop: Callable[[str, str], None],
        unusable: frozenset[int] = frozenset(),
        judge: Callable[[Example], str | None] = lambda example: None,
        on_stay: Callable[[str, str], None] | None = None,
        threads: int | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        """Takes the data set and the limits of its prompts and responses.

        Args:
          with_response: whether rows are trained on, and have a response.
          with_rejected: whether they have another one beside it, which is the worse.
          with_prompt: whether what the prompt says behind its media is trained on too: it then
            stands in the response.
          on_drop: see above.
          unusable: rows that are passed over without a word.
          judge: a function of an example alone, which threads may call: what is wrong with it
            otherwise, or None. It may take its time.
          on_stay: called with (source, reason) of such a row, which is drawn all the same; None
            leaves it out, and reports it with the others.
          threads: that encode; None is one for each core.
          check: called before each draw is waited for; what it raises ends the taking, and a later
            one draws the same.
        """
        self.dataset, self.processor = dataset, processor
        self.with_response, self.with_rejected = with_response, with_rejected
        self.with_prompt = with_prompt
        self.limits, self.on_drop = (max_prompt_tokens, max_response_tokens), on_drop
        self.unusable, self.judge, self.on_stay = set(unusable), judge, on_stay
        self.max_patches, self.last_drop, self.check = max_patches, "", check
        self.order = dataset.ordered(seed)
        self._ahead: Ahead[tuple[int, int], Draw] = Ahead(self._draw, threads)
        self._next = self._begun = 0  # positions: the next to take, the next to begin
        self._turn = 0  # place in its step of the next to begin
        self._turns: tuple[int, ...] = ()  # whose the draws are that are being taken
        self._reading = threading.Lock()

    def take(
        self, position: int, count: int, ahead: int = 0, turns: Sequence[int] = ()
    ) -> tuple[int, list[Draw]]:
        """`count` draws from `position` on, and the position after them.

        Args:
          ahead: draws behind them that are begun before they are asked for. The position says
            nothing of them: whoever goes on from it draws the same.
          turns: the host of each draw; those beyond are each host's in turn.

        Raises:
          DataError: a row that cannot be read, or no usable row left.
        """
        self._turns = tuple(turns)
        if position != self._next:  # not where the last ones ended
            self._ahead.forget()
            self._begun = position
        out: list[Draw] = []
        while len(out) < count:
            if len(self.unusable) >= len(self.dataset):
                why = f"; the last one: {self.last_drop}" if self.last_drop else ""
                raise DataError(
                    f"{self.dataset.name}: none of its {len(self.dataset)} rows can be used{why}"
                )
            if self._begun <= position:
                self._turn = len(out)
            self._begin(count - len(out))
            self.check()
            # One draw of each host at a time: whether a row is passed over concerns all.
            rows = self._window(position, min(count - len(out), host_count()))
            found = share(functools.partial(self._own, rows, len(out)))
            for position, row in rows.items():
                if row in self.unusable:  # perhaps only since it was begun
                    self._ahead.forget([(position, row)])
                elif isinstance(one := found[position], LeftOut):
                    self._leave_out(row, one)
                else:
                    self._told(one)
                    out.append(one)
            position += 1
            self._next, self._begun = position, max(self._begun, position)
        drawn = self._in_turn(out)
        self._turns = ()
        if self._begun <= position:
            self._turn = 0
        self._begin(ahead)
        return position, drawn

    def again(self, places: Sequence[tuple[int, int, int]]) -> list[Draw]:
        """Draws that were taken before, by (position, row, host).

        Where there are fewer hosts now, others take the place of those that are gone.
        """
        own = [(at, row) for at, row, host in places if owner(host) == host_index()]
        made = share(lambda: {at: self._taken(at, row) for at, row in own})
        found = [made[at] for at, _, _ in places]
        lost = [one for one in found if isinstance(one, LeftOut)]
        if lost:
            raise DataError(f"{lost[0].source}: {lost[0].reason}")
        return [one for one in found if isinstance(one, Draw)]

    def _whose(self, turn: int) -> int:
        """The host of the draw at a place among those that are being taken."""
        return self._turns[turn] if turn < len(self._turns) else owner(turn)

    def _in_turn(self, draws: list[Draw]) -> list[Draw]:
        """The draws, the i-th from the i-th host in turn, however many rows were passed over.

        Whose it is then follows from the draws of a step alone, which a resumed run draws again.
        """
        moved = [i for i, draw in enumerate(draws) if draw.prompt.host != self._whose(i)]
        if moved:
            made = share(functools.partial(self._made, [(i, draws[i]) for i in moved]))
            for i in moved:
                one = made[draws[i].position]
                assert isinstance(one, Draw)
                draws[i] = one
        return draws

    def _made(self, draws: list[tuple[int, Draw]]) -> dict[int, Draw | LeftOut]:
        """Those that are this host's turn, made here after all."""
        own = [draw for i, draw in draws if self._whose(i) == host_index()]
        return {draw.position: self._taken(draw.position, draw.row) for draw in own}

    def _window(self, position: int, usable: int) -> dict[int, int]:
        """{position: row} from a position on, up to so many rows that are usable as far as known.

        At least one, and no further than once through the data set.
        """
        rows: dict[int, int] = {}
        while usable > 0 and len(rows) < len(self.dataset):
            rows[position] = row = self.order[position]
            usable -= row not in self.unusable
            position += 1
        return rows

    def _own(self, rows: dict[int, int], before: int) -> dict[int, Draw | LeftOut]:
        """The draws that are this host's turn among some positions, `before` others behind it.

        The others are forgotten, where they were begun for it.
        """
        usable = [at for at, row in rows.items() if row not in self.unusable]
        own = [at for i, at in enumerate(usable, before) if self._whose(i) == host_index()]
        self._ahead.forget([(at, rows[at]) for at in usable if at not in own])
        return {at: self._taken(at, rows[at]) for at in own}

    def _taken(self, position: int, row: int) -> Draw | LeftOut:
        """A draw of this host; what is said of its row where the data set leaves it out."""
        try:
            return self._ahead.take((position, row))
        except (TooLong, MediaError, PromptError, Unfit) as error:
            with self._reading:
                example = self.dataset[row]
            is_ours = isinstance(error, TooLong | Unfit)
            refused = None if is_ours else refusal(self.dataset, example, error)
            if refused is not None:
                raise refused from error
            return LeftOut(example.source, str(error))

    def follow(self, metrics: Mapping[str, float]) -> None:
        """The order may follow what a step has measured; what was begun of another one is lost."""
        before = self.order.state
        self.order.follow(metrics)
        if self.order.state != before:
            self._ahead.forget()
            self._begun, self._turn = self._next, 0

    def close(self) -> None:
        """Ends the threads; what was encoded ahead is lost, and nothing else."""
        self._ahead.close()

    def __exit__(self, *_) -> None:
        self.close()

    def _begin(self, count: int) -> None:
        """Begins draws until this host's part of `count` are begun and not taken."""
        own = -(-count // host_count())
        while len(self._ahead) < own and len(self.unusable) < len(self.dataset):
            row = self.order[self._begun]
            if row not in self.unusable:
                # Whose turn it will be, should no row before it be passed over.
                if self._whose(self._turn) == host_index():
                    self._ahead.start([(self._begun, row)])
                self._turn += 1
            self._begun += 1

    def _draw(self, place: tuple[int, int]) -> Draw:
        """The draw of a (position, row), encoded."""
        position, row = place
        with self._reading:  # a user's data set need not know of threads
            example = self.dataset[row]
        problem = self.judge(example)
        if problem is not None and self.on_stay is None:
            raise Unfit(problem)
        prompt, response, rejected = self.encode(example)
        return Draw(position, row, example, prompt, response, problem, rejected)

    def _told(self, draw: Draw) -> None:
        """Reports what is wrong with a row that is drawn all the same."""
        if draw.problem is not None and self.on_stay is not None:
            self.on_stay(draw.example.source, draw.problem)

    def _leave_out(self, row: int, what: LeftOut) -> None:
        """Writes down a row that cannot be used."""
        self.unusable.add(row)
        self.last_drop = f"{what.source}: {what.reason}"
        self.on_drop(what.source, what.reason)

    def encode(self, example: Example) -> tuple[EncodedPrompt, np.ndarray, np.ndarray]:
        """The prompt of an example, and the token ids of its responses, where the stage trains on
        them: the one to say, and the worse one.
        """
        asked = Prompt(example.messages)
        prompt = self.processor.encode(asked, self.limits[0], self.max_patches)
        response = rejected = np.zeros(0, np.int32)
        if self.with_response:
            field = "chosen" if self.with_rejected else "response"
            response = self._spoken(prompt, example.response, field)
        if self.with_prompt:
            prompt, behind = prompt.parted(self.processor.media_token_ids)
            response = np.concatenate([behind, response])
            if len(response) > self.limits[1]:
                raise TooLong(
                    f"the prompt behind its media and the response have {len(response)} tokens, "
                    f"over the limit of {self.limits[1]}"
                )
        if self.with_rejected:
            rejected = self._spoken(prompt, example.rejected, "rejected")
            if np.array_equal(response, rejected):
                raise Unfit("fields 'chosen' and 'rejected' are equal: there is nothing to prefer")
        return prompt, response, rejected

    def _spoken(self, prompt: EncodedPrompt, text: str | None, field: str) -> np.ndarray:
        """int32[n]: the token ids of a response, with its end."""
        if text is None:
            raise PromptError(f"field '{field}': {NEEDS[field]} in every row")
        check_text(text, f"field '{field}'")
        if text.startswith(prompt.prefix.strip()):  # the prompt has opened it already
            text = text.removeprefix(prompt.prefix.strip())
            text = text.lstrip() if prompt.prefix[-1:].isspace() else text
        ids = [*self.processor.spoken_ids(text), self.processor.turn_end_id]
        if len(ids) > self.limits[1]:
            raise TooLong(f"the {field} has {len(ids)} tokens, over the limit of {self.limits[1]}")
        return np.asarray(ids, np.int32)
