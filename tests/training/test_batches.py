"""Guarantees of `training/batches.py`: what is prepared ahead, and when."""

import threading
from dataclasses import replace

import pytest

from config import BASE_MODEL
from data.examples import Example
from model.processor import Processor
from runtime.errors import InputError
from tests.test_train_grpo import some_examples
from train_grpo import GRPOConfig
from training.batches import PromptReader, places_of_step, questions_at

CFG = GRPOConfig(prompts_per_step=2, max_steps=3)


class Watched:
    """A processor that notes which questions it was asked, and in which thread."""

    def __init__(self):
        self.asked: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.has_asked = threading.Semaphore(0)

    def __deepcopy__(self, memo):
        return self

    def prompt(self, key, images, question):
        self.asked.append(key)
        self.threads.add(threading.current_thread())
        self.has_asked.release()
        return key


def test_the_prompts_of_the_next_step_are_made_by_a_thread_and_none_beyond_the_last():
    processor, examples = Watched(), some_examples(3)
    reader = PromptReader(examples, processor, CFG)
    expected = []
    for step in range(CFG.max_steps):
        questions, prompts = reader.read(places_of_step(step, CFG))
        assert prompts == [key for key, _ in questions]
        expected += prompts
        for _ in range(2 if step else 4):  # the first step waits for its own, too
            if step < CFG.max_steps - 1:
                assert processor.has_asked.acquire(timeout=10)
        ahead = [key for key, _ in questions_at(examples, places_of_step(step + 1, CFG), CFG)]
        assert processor.asked == expected + (ahead if step + 1 < CFG.max_steps else [])
    assert threading.main_thread() not in processor.threads


def test_prompts_are_those_of_the_step_in_whatever_order_steps_are_read():
    processor, examples = Processor(BASE_MODEL), some_examples(3)
    reader = PromptReader(examples, processor, CFG)
    for step in (0, 2, 1):
        questions, prompts = reader.read(places_of_step(step, CFG))
        for (key, example), prompt in zip(questions, prompts, strict=True):
            expected = processor.prompt(key, example.images, example.question)
            assert prompt.id == key and prompt.ids.equal(expected.ids)
            assert prompt.pixels is None or prompt.pixels.equal(expected.pixels)


def test_the_tokenizer_of_the_thread_is_not_that_of_the_caller():
    """Plain text and templates want other settings of it, which it keeps as a state."""
    processor = Processor(BASE_MODEL)
    reader = PromptReader(some_examples(3), processor, CFG)
    assert reader.processor is not processor
    assert reader.processor.tokenizer is not processor.tokenizer
    cfg = replace(CFG, max_steps=60, prompts_per_step=8)
    expected = processor.encode("<|im_end|> text"), processor.template(1)
    reader = PromptReader(some_examples(8), processor, cfg)
    for step in range(cfg.max_steps):
        reader.read(places_of_step(step, CFG))
        assert (processor.encode("<|im_end|> text"), processor.template(1)) == expected


def test_a_picture_that_cannot_be_read_ends_its_own_step_and_not_the_one_before(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    good = Example("good", (), "Which?", "a")
    bad = replace(good, id="bad", images=(tmp_path / "bad.jpg",))
    cfg = replace(CFG, prompts_per_step=1, max_steps=2)
    seed = next(
        seed
        for seed in range(20)
        if questions_at([good, bad], range(1), replace(cfg, seed=seed))[0][1] is good
    )
    reader = PromptReader([good, bad], Processor(BASE_MODEL), replace(cfg, seed=seed))
    reader.read(range(1))
    with pytest.raises(InputError, match=r"bad\.jpg"):
        reader.read(range(1, 2))
