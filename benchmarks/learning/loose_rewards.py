"""What a policy learns when it is paid by the field's loose rules: rewards for the ablation.

    python train_grpo.py --task entail --reward benchmarks/learning/loose_rewards.py:yes_no

Each is the rule of `tasks/loose.py` and, like its source, one more point for the format. The format
is the sources' regular expression, which accepts empty thoughts and empty answers.
"""

import re
from functools import partial

from data.examples import Example
from tasks.loose import loose_name_correct, loose_number_correct, loose_yes_no

FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


def _paid(rule, completions: list[str], example: Example) -> list[float]:
    return [
        rule(text, example.target) + float(FORMAT.fullmatch(text) is not None)
        for text in completions
    ]


name = partial(_paid, loose_name_correct)  # Visual-RFT's, for cls
number = partial(_paid, loose_number_correct)  # R1-V's, for count
yes_no = partial(_paid, loose_yes_no)  # VLM-R1's, for entail
