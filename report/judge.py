"""The judge of a report: on bills the hidden one, on other data a reward model that no training of
the method asks."""

import numpy as np

from corpus import bills
from data import Data
from evaluation.measure import pointwise_agreement, rp_scores
from evaluation.show import prompt_text
from reward import RewardModel
from runtime.run import Run
from runtime.stages import inputs_of
from train_reward import Models, Training, new_reward_model, rp_loss, train_reward_model


def trained_judge(run: Run, data: Data, models: Models) -> RewardModel | None:
    """Train or restore the judge of data that have no hidden one: as R_P, but from the pairs of the
    RL fold, from whose labels no other model learns; its head has another seed."""
    if not run.config.data.files:
        return None
    training = Training("judge", run.config.judge, data.folds["rl"], rp_loss, (1, 1, 1),
                        pointwise_agreement)
    content = run.stage("judge", inputs_of(run.config)["judge"], lambda: train_reward_model(
        run, data, models.policies["M_P^SFT"], training, run.config.run.seed + 1))
    return run.placed(new_reward_model(run, data), content["model"])


class Judge:
    """Grades of responses to the prompts `x`: the hidden judge's, or a reward model's scores."""

    def __init__(self, data: Data, models: Models, x: list):
        self.data, self.model, self.x = data, models.judge, x
        self.hidden = models.judge is None
        self.name = "hidden judge" if self.hidden else "a reward model held out from all training"
        self.graded = []  # (responses, their grades)

    def aspects(self, y: list) -> list[dict]:
        return [bills.judge(prompt_text(self.data, x), self.data.tokenizer.decode(ids))
                for x, ids in zip(self.x, y)]

    def grades(self, y: list) -> np.ndarray:
        """Grade responses, each list of them graded once; equal grades are ties."""
        known = [grades for other, grades in self.graded if other is y]
        if not known:
            known = [np.array([sum(bills.WEIGHTS[k] * v for k, v in a.items())
                               for a in self.aspects(y)]).round(9) if self.hidden else
                     rp_scores(self.data, self.model, self.x, y).round(4)]
            self.graded.append((y, known[0]))
        return known[0]
