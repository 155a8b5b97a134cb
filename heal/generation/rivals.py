"""The prompts that a text is held against to see whether it speaks to its own. docs/method.md, Relevance."""

from collections.abc import Sequence

from heal.generation.words import words_of

RIVALS = 5  # other prompts that a text is held against, at most
ALIKE = 0.5  # Jaccard similarity of their words from which two prompts ask nearly the same


def rivals(prompts: Sequence[str]) -> list[list[int]]:
    """For each prompt the next RIVALS others, cyclically, leaving out those that ask nearly the same."""
    words, size = [frozenset(words_of(prompt)) for prompt in prompts], len(prompts)

    def alike(one: int, other: int) -> bool:
        either = words[one] | words[other]
        return prompts[one] == prompts[other] or len(words[one] & words[other]) >= ALIKE * len(either)

    others = [[(own + step) % size for step in range(1, size)] for own in range(size)]
    return [[other for other in of_one if not alike(own, other)][:RIVALS] for own, of_one in enumerate(others)]
