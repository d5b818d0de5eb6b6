"""The words of a page that need a meaning, in the order in which they are explained.

A word is explained where the page uses it. Next: reporting/page/page.html.
"""

import re

from tasks.loose import RULES

# Pattern (ignoring case) -> word, meaning.
WORDS = {
    "grpo": ("GRPO", "the completions of a question are compared, the better ones made likelier"),
    r"\bppo\b": ("PPO", "a completion is compared with what a second model, the critic, expected; "
                "A is the mean of that over its tokens"),
    "held.out": ("held-out", "questions that are evaluated, never trained on"),
    "out of distribution": ("out of distribution", "harder or new questions, never trained on"),
    "greedy": ("greedy", "the likeliest token is taken each time, as in every evaluation"),
    r"\[\d[^]]*%": ("[a-b%]", "95 % interval of the value before it"),
    "strict": ("strict", "the whole answer is right"),
    "loose": ("loose", "right by a lenient rule of published code{rule}, which the task's own "
              "reward does not pay"),
    r"\bmap\b": ("mAP", "mean average precision of boxes, over IoU thresholds of 0.5 to 0.95"),
    r"\biou\b": ("IoU", "area that two boxes share, over the area that they cover; 1 if equal"),
    "confidence": ("confidence", "as a part of the reward: sure of right boxes, not of wrong ones"),
    r"\bformat\b": ("format", "as a part of the reward: exactly the blocks that were asked for"),
    "coords": ("boxes", "[x1, y1, x2, y2], in thousandths of the picture's width and height"),
    "zero-std": ("zero-std group", "the completions of one question, all with the same reward: no "
                 "difference to learn from"),
    "entropy": ("entropy", "how undecided sampling is: 0 where each token is certain"),
    r"\bkl\b": ("KL", "how far the policy has moved from the model that it started as"),
    "nats": ("nats", "units of the natural logarithm; 1 nat is a factor of 2.7"),
    "sampler against trainer": ("sampler against trainer", "how much the log-probabilities of the "
                                "same tokens differ between sampling and training; should be none"),
    "non-finite": ("non-finite updates", "skipped, since the gradient was infinite or no number"),
    "sparse": ("sparse", "only what is wholly right is paid; dense: nearly right, too (--dense)"),
}  # fmt: skip
STRICT = {"ground": "the box has an IoU of at least 0.5 with the target"}
STRICT |= dict.fromkeys(("det", "ovd"), "every box is found at IoU 0.5, and there is no other")


def glossary(text: str, task: str) -> list[tuple[str, str]]:
    """(word, meaning) of each word that a text uses."""
    rule = f" ({RULES[task]})" if task in RULES else ""
    found = []
    for pattern, (word, meaning) in WORDS.items():
        if re.search(pattern, text, re.IGNORECASE):
            meaning = STRICT.get(task, meaning) if word == "strict" else meaning
            found.append((word, meaning.replace("{rule}", rule)))
    return found
