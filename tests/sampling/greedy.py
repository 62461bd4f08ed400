"""Greedy answers of a real text-only model beside those of transformers.

    python tests/sampling/greedy.py DIR

Says for every prompt that differs at which token, and how far apart the two best logits of the
reference are there.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import jaxr1

TOKENS = 64
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "What is 17 + 25?",
    "List three prime numbers.",
    "Translate 'good morning' to Spanish.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What causes tides?",
    "Name the planets.",
    "How do airplanes fly?",
    "What is a black hole?",
    "Write a short story about a dog.",
    "Define entropy.",
    "What is the square root of 144?",
    "Why is the sky blue?",
    "Tell me a joke.",
    "How does a bicycle stay upright?",
    "What is machine learning?",
    "Summarise the water cycle.",
)


def main(directory: str) -> int:
    model, params = jaxr1.load_model(directory)
    processor = jaxr1.load_processor(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [jaxr1.Prompt(chat) for chat in chats]
    groups = jaxr1.generate(model, params, processor, prompts, max_new_tokens=TOKENS, temperature=0)
    same = 0
    for chat, prompt, [ours] in zip(chats, prompts, groups, strict=True):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert processor.encode(prompt).token_ids.tolist() == list(ids), chat
        with torch.no_grad():
            whole = reference.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        theirs = whole[0, len(ids) :].tolist()
        pairs = list(zip(ours.token_ids.tolist(), theirs, strict=False))
        apart = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        same += apart is None and len(ours.token_ids) == len(theirs)
        if apart is not None:
            with torch.no_grad():
                logits = reference(torch.tensor([[*ids, *theirs[:apart]]])).logits[0, -1]
            gap = float(-logits.topk(2).values.diff())
            print(
                f"{chat[0]['content']!r} differs at token {apart}, "
                f"where the two best logits are {gap:.2g} apart"
            )
    print(f"{same} of {len(QUESTIONS)} answers are equal; the first: {groups[0][0].text!r}")
    return 0 if same == len(QUESTIONS) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
