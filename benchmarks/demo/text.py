"""The words of the prompts: own questions, and own sentences that pad them to a wanted length.

A prompt opens with its padding, in an order of its own, and ends with its question.  So hardly any two prompts
share a first block, and the prefix cache, which is on, does not quietly shrink the load.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

SHOWN_QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Give me three tips for a good night's sleep.",
)

QUESTIONS = (
    "Why does bread rise when it is baked?",
    "What is the difference between weather and climate?",
    "How often should house plants be watered?",
    "Why is the sky blue in the day and red in the evening?",
    "What makes a cup of tea taste bitter?",
    "How do bees find their way back to the hive?",
    "Which tools do I need to hang a picture on a wall?",
    "How can I keep lettuce fresh for longer?",
    "Why do leaves change colour in autumn?",
    "What should I do when a fuse blows at home?",
    "How does a refrigerator keep food cold?",
    "What is the longest river in Africa?",
    "Why does ice float on water?",
    "How do I remove a coffee stain from a shirt?",
    "What causes the tides of the sea?",
    "How many bones does an adult human have?",
    "Why do cats purr?",
    "What is a good way to learn ten new words a day?",
    "How is glass made from sand?",
    "Why do onions make people cry?",
    "What is the best way to store potatoes?",
    "How does soap remove grease from a plate?",
    "Which planets can be seen without a telescope?",
    "How do I sharpen a kitchen knife?",
    "Why do some people snore at night?",
    "What does a conductor of an orchestra do?",
    "How do trees move water up to their leaves?",
    "What is the easiest musical instrument to begin with?",
    "Why is the sea salty?",
    "How can I save electricity in a small flat?",
    "What happens to a letter after it is posted?",
    "How do I plan a walk of three days in the hills?",
    "Why do stars seem to twinkle?",
    "What is the difference between a fruit and a vegetable?",
    "How long does it take to boil rice?",
    "Why do bicycles stay upright when they move?",
    "What should be in a first aid box?",
    "How are clouds formed over mountains?",
    "Why does metal feel colder than wood?",
    "How do I descale a kettle?",
)

SENTENCES = (
    "The kitchen faces north and gets little sun in winter.",
    "My neighbour keeps four hens behind the old shed.",
    "Last week the market had plums, pears and late beans.",
    "There are two buses an hour to the town centre.",
    "We painted the hall white, and the door dark green.",
    "The library closes early on Wednesdays.",
    "A spare key hangs on a nail next to the meter.",
    "It rained for nine days, then the garden dried within one.",
    "The children built a boat out of boxes and tape.",
    "Our oven runs a little hotter than its dial says.",
    "Somebody left a blue umbrella in the waiting room.",
    "The path along the river is muddy after the bridge.",
    "I keep flour, oats and sugar in tall glass jars.",
    "The old clock loses about two minutes a week.",
    "Most of the windows were replaced in spring.",
    "A small radio plays in the workshop all afternoon.",
    "The baker on the corner sells out before ten.",
    "Half of the shelves are still empty.",
    "Grandfather wrote down the price of every train ticket.",
    "The dog sleeps under the table when guests come.",
    "In summer the classroom is too warm after lunch.",
    "She repairs chairs and lamps for the whole street.",
    "The lamp over the sink flickers when the pump starts.",
    "Three of the apple trees carry fruit every other year.",
    "The map in the hut shows paths that no longer exist.",
    "He counts the swallows on the wire each morning.",
    "Our tent has one bent pole and a patched roof.",
    "The museum shows coins, boats and a very large bell.",
    "A jar of screws fell behind the washing machine.",
    "The choir meets in the gym until the hall is finished.",
    "Fresh snow covered the tracks before noon.",
    "The ferry carries bicycles for free on Sundays.",
    "My sister grows tomatoes on a balcony on the fifth floor.",
    "The printer needs new paper and a little patience.",
    "Every second lantern in the park is switched off at eleven.",
    "The well is deep, and its water is cold all year.",
    "A fox crosses the yard shortly after sunset.",
    "We measured the room twice and still cut the board short.",
    "The soup was better on the second day.",
    "Nobody remembers who planted the walnut tree.",
)


class PromptWriter:
    """Writes prompts of a wanted length.

    `count` tells how many tokens a text has for the served model, `template_tokens` what its chat template adds.
    """

    def __init__(self, count: Callable[[str], int], template_tokens: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._template_tokens = template_tokens
        self._question_tokens = {q: count(q) for q in QUESTIONS}
        self._sentence_tokens = {s: count(s) for s in SENTENCES}

    def write(self, tokens: int) -> str:
        """A question padded to about `tokens` tokens: short by less than a sentence, or the bare question."""
        question = self._rng.choice(QUESTIONS)
        left = tokens - self._template_tokens - self._question_tokens[question]
        parts: list[str] = []
        while True:
            sentence = self._rng.choice(SENTENCES)
            left -= self._sentence_tokens[sentence]
            if left < 0:
                return " ".join([*parts, question])
            parts.append(sentence)


def vocabulary(*more: str) -> list[str]:
    """Every word and mark of the demo's texts, each once: all that the tiny model's tokenizer needs to know."""
    texts = [*SHOWN_QUESTIONS, *QUESTIONS, *SENTENCES, *more]
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)})
