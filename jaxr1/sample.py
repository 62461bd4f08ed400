"""`python -m jaxr1.sample --model DIR [--image X.png ...] "question"`: asks a model."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Literal

from jaxr1.base.text import visible


@dataclasses.dataclass(frozen=True)
class Sample:
    """Asks a model a question about images.

    Attributes:
      question: the text of the question.
      model: Hugging Face directory, preset name or hub id.
      image: an image file, placed before the question; give the flag once for each, in order.
      video: a video file, placed after the images; needs the extra "video".
      n: answers.
      max_new_tokens: limit of an answer.
      temperature: 0 is greedy.
      top_p: draw from the smallest set of tokens with this probability; 1 is off.
      top_k: draw from the k most likely tokens; 0 is off.
      stop: a string that ends an answer; give the flag once for each.
      seed: of the draws.
      template: "r1_zero" for a base model.
      system: a system prompt, or the name of a known one ("r1", "boxed"); by default that of the
        model's training, "" is none.
      question_template: words around the question: a text with {question} in it, or the name of a
        known one ("think_answer", "boxed", "short", "letter"); by default those of the model's
        training.
      prefix: opens the answer.
      min_pixels: lower bound of the area of a resized image.
      max_pixels: upper bound of the area of a resized image.
      dtype: of the parameters in memory and of the computation: "bfloat16" takes half the memory of
        "float32".
    """

    question: str
    model: str = "tiny"
    image: tuple[str, ...] = ()
    video: tuple[str, ...] = ()
    n: int = 1
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0
    template: Literal["r1_zero", "chatml", "internvl2_5"] | None = None
    system: str | None = None
    question_template: str | None = None
    prefix: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        from jaxr1.inputs.wording import Wording
        from jaxr1.sampling.sampler import SamplingOptions

        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        Wording().given(self.template, self.system, self.question_template)
        SamplingOptions(self.max_new_tokens, self.temperature, self.top_p, self.top_k, self.stop)

    def prompt(self):
        """The question after its images and videos."""
        import jaxr1

        images = [{"type": "image", "image": file} for file in self.image]
        videos = [{"type": "video", "video": file} for file in self.video]
        content = [*images, *videos, {"type": "text", "text": self.question}]
        return jaxr1.Prompt([{"role": "user", "content": content}], prefix=self.prefix)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    from jaxr1.entry import arguments, finish, prepare

    prepare()
    import tyro

    marked = Annotated[Sample, tyro.conf.arg(name="")]
    args = arguments(
        marked, "sample", argv, (tyro.conf.PositionalRequiredArgs, tyro.conf.UseAppendAction)
    )  # type: ignore[arg-type]
    import jaxr1
    from jaxr1.base.checks import option

    def ask() -> int:
        model, params = jaxr1.load_model(args.model, args.dtype, param_dtype=args.dtype)
        with option("the processor"):
            bounds = (args.min_pixels, args.max_pixels)
            words = {"system": args.system, "question_template": args.question_template}
            processor = jaxr1.load_processor(args.model, *bounds, args.template, **words)
        prompt = args.prompt()
        opened = processor.encode(prompt, decode=False).prefix
        printer = _Printer(processor, opened, args.stop)
        streaming = args.n == 1
        [answers] = jaxr1.generate(
            model,
            params,
            processor,
            [prompt],
            n=args.n,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            stop=args.stop,
            seed=args.seed,
            on_tokens=printer if streaming else None,
            stream_every=8 if streaming else 0,
        )
        if streaming:
            printer.finish(answers[0].text)
            if answers[0].finish_reason == "length":
                print(
                    f"(cut at {args.max_new_tokens} tokens, see --max-new-tokens)", file=sys.stderr
                )
            return 0
        for i, answer in enumerate(answers):
            print(f"--- answer {i + 1} ({answer.finish_reason})\n{visible(opened + answer.text)}")
        return 0

    return finish(ask)


class _Printer:
    """Prints the growing answer, less what an incomplete character or a stop may still change."""

    def __init__(self, processor, opened: str, stop: tuple[str, ...]):
        from jaxr1.sampling.stops import StopStrings

        self.processor, self.opened, self.shown = processor, opened, ""
        self.stops, self.held = StopStrings(stop, processor), max(map(len, stop), default=1) - 1
        self.begun = False

    def __call__(self, tokens) -> None:
        cut = self.stops.cut(tokens[0][0])
        text = self.processor.decode(tokens[0][0]).rstrip("\ufffd")
        self._show(cut.text if cut else text[: len(text) - self.held])

    def _show(self, text: str) -> None:
        if not self.begun:
            print(visible(self.opened), end="")
            self.begun = True
        if text.startswith(self.shown):
            print(visible(text[len(self.shown) :]), end="", flush=True)
            self.shown = text

    def finish(self, text: str) -> None:
        self._show(text)
        print()


if __name__ == "__main__":
    sys.exit(main())
