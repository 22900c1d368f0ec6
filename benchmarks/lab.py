"""What the evidence stands on: models, each trained once, and responses of every system.

A lab is a seed and an order of the total. Its base run has the data and the method's models;
variations of it stand on the base run's finished stages. `Responses` are every system's answers to
the same questions at the same temperature, with the tokens that were sampled for them.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import Data, load_data  # noqa: E402
from runtime import Run, load_config  # noqa: E402
from sample import answer, improve  # noqa: E402
from tools import rubric  # noqa: E402
from tools.measure import gap_scores, rp_scores  # noqa: E402
from tools.report import Judge  # noqa: E402
from tools.rivals import (best_by, feedback_on, rewritten, train_refiner,  # noqa: E402
                          with_rubric)
from tools.show import prompt_text  # noqa: E402
from train_pit import R_P, SUPERVISED, train_all, train_pit_stage, train_rlhf  # noqa: E402
from train_reward import (BASE, Models, new_gpt, new_reward_model,  # noqa: E402
                          train_rp, train_sft, train_start)

OUTSIDE_SEED = 1000  # added to a seed: the data of the reward model that only judges
CONTEXT = 208        # tokens: Self-Refine reads a question, a draft, a rubric and notes
RUBRIC = rubric.ASPECTS
LESSONS = 2          # Self-Refine's policy: steps over those of M_PIT^SFT; see the row "choices"


@dataclasses.dataclass
class Trained:
    run: Run
    data: Data
    models: Models


class Lab:
    """The runs of one seed; `place` is "first" or "last", the place of the total."""

    def __init__(self, path: str, overrides: list[str], seed: int, place: str = "first"):
        self.path, self.seed, self.place = path, seed, place
        self.overrides = overrides + [f"--data.total={place}", f"--model.context={CONTEXT}"]
        self.known = {}

    def opened(self, name: str = "", fields: dict | None = None,
               seed: int | None = None) -> Trained:
        """A run of this lab with its data; nothing is trained yet."""
        seed = self.seed if seed is None else seed
        whole = load_config(self.path, self.overrides)
        base = f"{whole.run.name}-{self.place}-{seed}"
        fields = {"run.seed": seed, "run.name": base + (name and "-" + name)} | (fields or {})
        if name:
            fields["run.base"] = str(Path(whole.run.dir) / base)
        run = Run(load_config(self.path, self.overrides + [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in fields.items()]))
        return Trained(run, load_data(run), None)

    def once(self, name: str, make):
        """What make() returns, made once."""
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    def base(self) -> Trained:
        """The method's models, and RLHF with the whole budget of samples."""
        return self.once("base", lambda: whole(self.opened(fields={"eval.equal_budget": True})))

    def varied(self, name: str, **fields) -> Trained:
        """The models with other settings (section__key=value), on top of the base run."""
        self.base()
        dotted = {key.replace("__", "."): value for key, value in fields.items()}
        return self.once(name, lambda: whole(self.opened(name, dotted)))

    def refiners(self, lessons: int = LESSONS) -> dict:
        """The policies that are taught feedback and rewrites: after RL (Eq. 3), and before it."""
        def make():
            run, data, models = vars(self.base()).values()
            fit, name = run.config.pit_sft, f"refiner-{lessons}"
            fit = dataclasses.replace(fit, steps=lessons * fit.steps)
            sft, anchor, policy = models.policies["M_P^SFT"], new_gpt(run, data), new_gpt(run, data)
            with run.precision():
                taught = run.stage(name, BASE + ("sft", "pit_sft"),
                                   lambda: train_refiner(run, data, sft, fit))
                anchor = run.placed(anchor, taught["model"])
                after = run.stage(
                    f"{name}-rl", R_P + ("pit_sft", "ppo", "rlhf"),
                    lambda: train_rlhf(run, data, f"{name}-rl", anchor, models.rp))
            return {"Self-Refine": run.placed(policy, after["model"]),
                    "Self-Refine without RL": anchor}
        return self.once(f"refiners {lessons}", make)

    def one_stage(self, name: str, stage: str, **fields) -> Trained:
        """RLHF or PIT's first stage alone, with other settings of it."""
        def make():
            found = self.opened(name, {key.replace("__", "."): v for key, v in fields.items()})
            run, data = found.run, found.data
            with run.precision():
                found.models = models = train_start(run, data)
                sft = models.policies["M_P^SFT"]
                content = run.stage(stage, *(
                    (R_P + ("ppo", "rlhf"), lambda: train_rlhf(run, data, stage, sft, models.rp))
                    if stage == "rlhf" else
                    (SUPERVISED + ("ppo", "pit.score", stage),
                     lambda: train_pit_stage(run, data, stage, models, None))))
            models.policies[stage] = run.placed(new_gpt(run, data), content["model"])
            return found
        self.base()
        return self.once(name, make)

    def outside(self) -> Trained:
        """A reward model R_P of other questions and pairs, which no training asks."""
        def make():
            found = self.opened(seed=self.seed + OUTSIDE_SEED)
            run, data = found.run, found.data
            with run.precision():
                sft = run.stage("sft", BASE + ("sft",), lambda: train_sft(run, data))
                policy = run.placed(new_gpt(run, data), sft["model"])
                rp = run.stage("rp", R_P, lambda: train_rp(run, data, policy))
            model = run.placed(new_reward_model(run, data), rp["model"])
            found.models = Models(model, None, {"M_P^SFT": policy})
            return found
        return self.once("outside", make)


def whole(opened: Trained) -> Trained:
    """All models of a run, trained or restored."""
    with opened.run.precision():
        opened.models = train_all(opened.run, opened.data)
    opened.run.write_config()
    return opened


class Responses:
    """Every system's responses to the first questions of a split, made when they are asked for.

    y_0 ~ M_P^RL is what PIT, Self-Refine and best of n begin with; `drafts` are others to begin
    with instead. `tokens` counts what a system samples for an answer, the ends included, from the
    beginning.
    """

    def __init__(self, lab: Lab, split: str, temperature: float, drafts: list | None = None,
                 lessons: int = LESSONS):
        self.lab, self.temperature, self.lessons = lab, temperature, lessons
        self.run, self.data, self.models = vars(lab.base()).values()
        fold = self.data.folds[split]
        self.x = fold.x[:self.run.config.eval.prompts]
        self.judge = Judge(self.data, self.models, self.x)
        self.made, self.scored, self.counts = {}, [], {}  # counts by the identity of a list
        for side in ("y_w", "y_l"):
            self.keep(side, lambda _: getattr(fold, side)[:len(self.x)])
        if drafts is not None:
            self.keep("M_P^RL", lambda _: drafts)

    def keep(self, name: str, make, *before: list) -> list:
        """make(generator), made once, `before` which other responses were sampled."""
        if name not in self.made:
            generator = self.run.generator(f"{name}, {self.temperature}", self.run.device)
            with self.run.precision():
                y = self.made[name] = make(generator)
            own = float(np.mean([len(ids) + 1 for ids in y]))
            self.counts[id(y)] = own + sum(map(self.tokens, before))
        return self.made[name]

    def tokens(self, y: list) -> float:
        return self.counts[id(y)]

    def answers(self, name: str, policy) -> list:
        return self.keep(name, lambda generator: answer(
            self.run, self.data, policy, self.x, self.temperature, generator))

    def of(self, policy: str) -> list:
        """What a policy of the base run answers."""
        return self.answers(policy, self.models.policies[policy])

    def best_of(self, number: int) -> list:
        """The best by R_P of y_0 and number - 1 more samples of M_P^RL."""
        policy = self.models.policies["M_P^RL"]
        tries = [self.of("M_P^RL")] + [self.answers(f"M_P^RL, try {k}", policy)
                                       for k in range(2, number + 1)]
        best = self.keep(f"best of {number}", lambda _: best_by(
            self.run, self.data, self.models, self.x, tries))
        self.counts[id(best)] = sum(map(self.tokens, tries))
        return best

    def improved(self, name: str, policy, times: int = 1, start: str = "M_P^RL") -> list:
        """y_times of a policy that improves what `start` answers."""
        y_ref = self.improved(name, policy, times - 1, start) if times > 1 else self.of(start)
        return self.keep(f"{name} {times} over {start}", lambda generator: improve(
            self.run, self.data, policy, self.x, y_ref, self.temperature, generator), y_ref)

    def pit(self, times: int = 1, start: str = "M_P^RL") -> list:
        return self.improved("PIT", self.models.policies["PIT stage 1"], times, start)

    def refined(self, aspects=RUBRIC, times: int = 1, name: str = "Self-Refine") -> list:
        """Self-Refine of y_0 by a rubric, `times` over, by the taught policy of that name."""
        policy = self.lab.refiners(self.lessons)[name]
        y_ref = self.refined(aspects, times - 1, name) if times > 1 else self.of("M_P^RL")
        what, data = f"{name} {times} by {aspects}", with_rubric(self.data, aspects)
        feedback = self.keep(f"{what}, feedback", lambda generator: feedback_on(
            self.run, data, policy, self.x, y_ref, self.temperature, generator), y_ref)
        return self.keep(what, lambda generator: rewritten(
            self.run, data, policy, self.x, y_ref, feedback, self.temperature, generator), feedback)

    # ------------------------------------------------------------------------- what they are worth

    def gold(self, y: list) -> np.ndarray:
        return self.judge.grades(y)

    def outside(self, y: list) -> np.ndarray:
        """Scores by the reward model of other data, which reads the texts by its own tokenizer."""
        known = [scores for other, scores in self.scored if other is y]
        if not known:
            data, models = list(vars(self.lab.outside()).values())[1:]
            x = [data.prompt(prompt_text(self.data, ids)) for ids in self.x]
            texts = [data.response(self.data.tokenizer.decode(ids)) for ids in y]
            known = [rp_scores(data, models.rp, x, texts).round(4)]
            self.scored.append((y, known[0]))
        return known[0]

    def gaps(self, y: list, y_ref: list, rpit=None) -> np.ndarray:
        """r_gap(x, y, y_ref)."""
        return gap_scores(self.data, rpit or self.models.rpit, self.x, y, y_ref)

    def aspects(self, y: list) -> dict:
        grades = self.judge.aspects(y)
        return {name: float(np.mean([g[name] for g in grades])) for name in RUBRIC}

    def over(self, y: list, other: list) -> dict:
        """win - lose of y against the other, in points, by both judges."""
        return {name: 100 * float(np.sign(judge(y) - judge(other)).mean())
                for name, judge in (("gold", self.gold), ("outside", self.outside))}
