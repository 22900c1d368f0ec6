"""Other ways to a better response, for the reports: best of n, and Self-Refine; and on bills, what
teaches a policy to refine itself by a rubric."""

import dataclasses
import random
from functools import cache

import numpy as np

from corpus.templates import Template
from corpus.tokens import Column
from data import Data, Fold, Pairs
from evaluation.measure import rp_scores
from evaluation.show import prompt_text
from model import GPT, pad_rows
from report import rubric
from runtime.checks import refuse_short_context
from runtime.run import Run
from runtime.stages import inputs_of
from runtime.state import weights_of
from sample import Sampler, answer, generate
from train_reward import Models, Training, lm_loss, new_gpt, sft_loss, train


def chosen_by(scores: list[np.ndarray], tries: list) -> list:
    """Return of each question the response with the highest score."""
    return [tries[k][i] for i, k in enumerate(np.argmax(scores, axis=0))]


def best_of(sampler: Sampler, models: Models, x: list, number: int) -> list:
    """Return the best by R_P of `number` responses of M_P^RL."""
    tries = [answer(sampler, models.policies["M_P^RL"], x) for _ in range(number)]
    return chosen_by([rp_scores(sampler.data, models.rp, x, y) for y in tries], tries)


def self_refine(sampler: Sampler, policy: GPT, x: list, y_ref: list) -> list:
    """Ask the policy for feedback on y_ref, then for a rewrite: the rival by prompting (arXiv
    2303.17651)."""
    data = sampler.data
    feedback = generate(sampler, policy, [data.feedback(*pair) for pair in zip(x, y_ref)])
    return generate(sampler, policy, [data.rewrite(*triple) for triple in zip(x, y_ref, feedback)])


def train_sft_more(run: Run, data: Data, models: Models) -> dict:
    """Train M_P^SFT for as many steps more as M_PIT^SFT takes, on other batches than before."""
    model = run.placed(new_gpt(run, data), weights_of(models.policies["M_P^SFT"]))
    train(run, data, model, Training(
        "sft_more", run.config.pit_sft, data.folds["sft"], sft_loss, (1, 1, 0)))
    return {"model": weights_of(model)}


# ------------------------------------------------------------------------- a taught Self-Refine


def with_rubric(data: Data, aspects) -> Data:
    """Return the data with Self-Refine's templates for a rubric of these aspects."""
    feedback, rewrite = (Template(text, data.tokenizer, data.policy_prompt.start, first=True)
                         for text in rubric.templates(aspects))
    return dataclasses.replace(data, feedback=feedback, rewrite=rewrite)


def refiner_examples(run: Run, data: Data) -> Fold:
    """Make the texts that the policy reads (x) and is taught to write (y_w): of each pair of the
    SFT fold the answer y_w, notes on one of the responses by some rubric, and its rewrite."""
    fold, rng = data.folds["sft"], random.Random(run.config.run.seed)
    reads, writes = [], []
    asked = cache(lambda aspects: with_rubric(data, aspects))
    encode, limit = data.tokenizer.encode, run.config.data.max_response
    for x, y_w, y_l in zip(fold.x, fold.y_w, fold.y_l):
        y_ref, aspects = rng.choice((y_w, y_l)), rubric.some_rubric(rng)
        question, draft = prompt_text(data, x), data.tokenizer.decode(y_ref)
        try:
            rewrite = rubric.mended(question, draft, aspects)
        except ValueError:  # the draft has a character that the tokenizer does not know
            continue
        notes, rewrite = encode([rubric.notes(question, draft, aspects), rewrite])
        reads += [data.policy_prompt(x), asked(aspects).feedback(x, y_ref),
                  asked(aspects).rewrite(x, y_ref, notes)]
        writes += [y_w, notes, rewrite]
    fits = [len(ids) < limit for ids in writes]
    return Fold(*(Column.of([ids for ids, fit in zip(lists, fits) if fit])
                  for lists in (reads, writes, [[]] * len(reads))))


def refiner_loss(model: GPT, data: Data, pairs: Pairs):
    """Return -log M(y_w | x), as the losses of train_reward.py do, where x is a whole prompt."""
    return lm_loss(model, pad_rows(pairs.x, [data.add_eos(y) for y in pairs.y_w], data.device))


def train_refiner(run: Run, data: Data, policy: GPT) -> dict:
    """Train M_P^SFT further, on a third each of answers, feedback and rewrites."""
    fit = run.config.pit_sft
    fit = dataclasses.replace(fit, steps=run.config.refine.lessons * fit.steps)
    model = run.placed(new_gpt(run, data), weights_of(policy))
    train(run, data, model, Training(
        "refiner", fit, refiner_examples(run, data), refiner_loss, (1, 1, 0)))
    return {"model": weights_of(model)}


def refiner_data(run: Run, data: Data) -> Data:
    """Return the data with the templates that a taught policy reads. Raises UserError where
    model.context is too short for them."""
    if not run.config.refine.lessons:
        return data
    found = with_rubric(data, rubric.ASPECTS)
    refuse_short_context([found.feedback, found.rewrite], run.config)
    return found


def refiner(run: Run, data: Data, models: Models) -> tuple[GPT, Data] | None:
    """Return Self-Refine's policy, and the data with its templates: one that is taught, or M_P^RL
    with the templates of the config; None where there are neither."""
    if not run.config.refine.lessons:
        return (models.policies["M_P^RL"], data) if run.config.refine.rewrite else None
    content = run.stage("refiner", inputs_of(run.config)["refiner"], lambda: train_refiner(
        run, data, models.policies["M_P^SFT"]))
    return run.placed(new_gpt(run, data), content["model"]), refiner_data(run, data)
