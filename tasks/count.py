"""Visual counting with arithmetic, after Reason-RFT (arXiv:2503.20752) and R1-V.

prompt   "How many red flowers?", "How many red and blue flowers?", and the counterfactual
         "If all red flowers were picked, how many are left?" (CLEVR-Math's subtraction)
data     garden scenes; rows with a number as solution (data/rows.py)
reward   the right number + asked-for format; with --dense, exp(-|error|) for a wrong one
metric   strict accuracy; "loose" finds the number anywhere in the text, as R1-V's rule does
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

from functools import partial

from answers import parse_number
from data.garden.questions import ask_count
from rewards import number_reward
from tasks import Example, Settings, Task
from tasks.loose import loose_number_correct
from tasks.scenes import draw_question, garden_splits, record_splits, wire


def load(settings: Settings) -> Task:
    """Read or generate the counting task. Raises InputError for data that cannot be used."""
    if settings.data == "garden":
        splits = garden_splits("count", partial(draw_question, ask_count), settings)
    else:
        splits = record_splits(settings, lambda text: parse_number(text) is not None)

    def reward(text: str, example: Example, dense: float):
        return number_reward(text, example.target, settings.prompt_mode, settings.weights, dense)

    return wire("count", settings, splits, reward, scores, max_completion_length=64)


def scores(text: str, example: Example) -> dict[str, float]:
    return {
        "strict": number_reward(text, example.target).parts["correct"],
        "loose": loose_number_correct(text, example.target),
    }
