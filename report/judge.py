"""The judge of a report: on bills the hidden one, on other data a reward model that no training of
the method asks, or a function of your own (eval.judge) that grades texts:

    # short.py
    def brevity(x, y):
        return [-len(text) for text in y]

    python train_pit.py --config configs/hh.toml --eval.judge=short.py:brevity
"""

import numpy as np

from corpus import bills
from data import Data
from evaluation.measure import pointwise_agreement, rp_scores
from evaluation.show import prompt_text
from reward import RewardModel
from runtime.own import asked
from runtime.ranks import gather, shard
from runtime.run import Run
from runtime.stages import inputs_of
from train_reward import Models, Training, new_reward_model, rp_loss, train_reward_model


def judge_of(run: Run, data: Data, models: Models) -> RewardModel | str | None:
    """Return the "file.py:function" of eval.judge; on bills None. Other data have no hidden judge:
    train or restore one as R_P, but from the pairs of the RL fold, from whose labels no other model
    learns; its head has another seed."""
    if not run.config.trains_judge():
        return run.config.eval.judge or None
    training = Training("judge", run.config.judge, data.folds["rl"], rp_loss, (1, 1, 1),
                        pointwise_agreement)
    content = run.stage("judge", inputs_of(run.config)["judge"], lambda: train_reward_model(
        run, data, models.policies["M_P^SFT"], training, run.config.run.seed + 1))
    return run.placed(new_reward_model(run, data), content["model"])


class Judge:
    """Grades of responses to the prompts `x`: the hidden judge's of bills, those of a function of
    the user's, or a reward model's scores. `is_gold`: the grades are no model's of ours, and the
    report has them as gold."""

    def __init__(self, data: Data, grader: RewardModel | str | None, x: list):
        self.data, self.grader, self.x = data, grader, x
        self.bills, own = self.grader is None, isinstance(self.grader, str)
        self.is_gold = self.bills or own
        self.name = ("hidden judge" if self.bills else self.grader if own else
                     "a reward model held out from all training")
        self.graded = []  # (responses, their grades)

    def texts(self, y: list) -> tuple[list[str], list[str]]:
        """Return prompts and responses as texts."""
        return ([prompt_text(self.data, x) for x in self.x],
                [self.data.tokenizer.decode(ids) for ids in y])

    def aspects(self, y: list) -> list[dict]:
        return [bills.judge(*texts) for texts in zip(*self.texts(y))]

    def grades(self, y: list) -> np.ndarray:
        """Grade responses, each list of them graded once; equal grades are ties."""
        known = [grades for other, grades in self.graded if other is y]
        if not known:
            known = [self.fresh_grades(y)]
            self.graded.append((y, known[0]))
        return known[0]

    def fresh_grades(self, y: list) -> np.ndarray:
        """Ask the judge."""
        if self.bills:
            return np.array([bills.grade(*texts) for texts in zip(*self.texts(y))]).round(9)
        if self.is_gold:  # each rank asks for its share
            return np.array(gather(asked(self.grader, *map(shard, self.texts(y)))))
        return rp_scores(self.data, self.grader, self.x, y).round(4)
