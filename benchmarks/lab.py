"""What the evidence stands on: models, each trained once, and the responses of every system.

A lab is a seed and a place of the total. Its base run has the data and the method's models; other
trainings stand on the base run's finished stages, in folders of their own.
"""

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import script  # noqa: F401  (the project's modules are found from here on)

from data import Data, load_data
from evaluation.measure import gap_scores, rp_scores
from report.judge import Judge
from report.rivals import best_by, train_refiner, with_rubric
from report.rubric import ASPECTS
from evaluation.show import prompt_text
from model import GPT
from pretrained.configure import load_config
from runtime.checks import refuse_short_context
from runtime.launch import choose_for, pick_device
from runtime.run import Run
from runtime.stages import BASE, OF_R_P, SUPERVISED, title
from sample import Sampler, generate
from train_pit import train_all, train_pit_stage, train_rlhf
from train_reward import Models, new_gpt, new_reward_model, train_rp, train_sft, train_start

OUTSIDE_SEED = 1000  # added to a seed: the data of the reward model that only judges
CONTEXT = 208        # tokens: Self-Refine reads a question, a draft, a rubric and notes
RL = ("rlhf", "stage0", "stage1")

# What was chosen on validation questions for what the config has no field for (rows "choices-...").
CHOSEN = {
    "RLHF, equal budget": {"rlhf__kl_target": 1.5, "rlhf__lr_scale": 4.0},
    "difference": {"stage0__lr_scale": 4.0, "stage1__lr_scale": 2.0},
    "lessons": 8,             # steps of Self-Refine's policy, in those of M_PIT^SFT
    "refiner": "before RL",   # or "after RL"
}


@dataclass
class Trained:
    run: Run
    data: Data
    models: Models

    def last(self) -> GPT:
        """Return the policy that was trained last."""
        return list(self.models.policies.values())[-1]


class Lab:
    """The trainings of one seed; `place` is "first" or "last", the place of the total."""

    def __init__(self, path: str, overrides: list[str], seed: int, place: str = "first"):
        self.path, self.seed = path, seed
        self.overrides = [f"--data.total={place}", f"--model.context={CONTEXT}",
                          "--eval.equal_budget=false", *overrides]
        self.config = load_config(path, self.overrides)
        self.name = f"{self.config.run.name}-{place}"
        self.known = {}

    def settings(self, chosen: tuple[str, ...]) -> dict:
        """Return the config and some of CHOSEN: all that decides a row's figures but the code, the
        seed, and other rounding than run.amp's."""
        settled = copy.deepcopy(self.config)
        choose_for(pick_device(settled.run.device), settled)
        return {f"{section}.{key}": value
                for section, keys in dataclasses.asdict(self.config).items() if section != "run"
                for key, value in keys.items()} | {"run.amp": settled.run.amp} | {
                    f"chosen.{name}": CHOSEN[name] for name in chosen}

    def once(self, name: str, make):
        """Return what make() returns, made once."""
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    # ----------------------------------------------------------------------------- the trainings

    def trained(self, train, seed: int, name: str = "", **fields) -> Trained:
        """Return what train(run, data) makes, trained or restored, in a run of this lab with a
        `name` of its own if it stands on the base run. `fields` are section__key=value."""
        base = f"{self.name}-{seed}"
        changed = {"run.seed": seed, "run.name": base + (name and f"-{name}"),
                   "run.base": str(Path(self.config.run.dir) / base) if name else ""}
        changed |= {key.replace("__", "."): value for key, value in fields.items()}
        run = Run(load_config(self.path, self.overrides + [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in changed.items()]))
        data = load_data(run)
        asked = with_rubric(data, ASPECTS)
        refuse_short_context([asked.feedback, asked.rewrite], run.config)
        with run.precision():
            models = train(run, data)
        run.write_config()
        return Trained(run, data, models)

    def base(self) -> Trained:
        """Return the method's models, with the config's settings."""
        return self.once("base", lambda: self.trained(train_all, self.seed))

    def varied(self, name: str, train=train_all, **fields) -> Trained:
        """Return the method's models with other settings, which leave the rest to the base run."""
        self.base()
        return self.once(name, lambda: self.trained(train, self.seed, name, **fields))

    def supervised(self, name: str, **fields) -> Trained:
        """Return the supervised models and the reward models with other settings."""
        return self.varied(name, train_start, **fields)

    def both_stages(self, **fields) -> Trained:
        """Train PIT's stages with other settings."""
        return self.varied(label("both", fields), **fields)

    def difference(self) -> Trained:
        """PPO on R_P(x, y) - R_P(x, y_ref) instead of r_gap."""
        return self.both_stages(pit__score="difference", **CHOSEN["difference"])

    def one_stage(self, stage: str, name: str = "", **fields) -> Trained:
        """RLHF ("rlhf") or PIT's first stage ("stage0") alone with other settings."""
        def train(run: Run, data: Data) -> Models:
            models = train_start(run, data)
            if stage == "rlhf":
                content = run.stage("rlhf", OF_R_P + ("ppo", "rlhf"), lambda: train_rlhf(
                    run, data, "rlhf", models.policies["M_P^SFT"], models.rp))
            else:
                content = run.stage(stage, SUPERVISED + ("ppo", "pit.score", stage),
                                    lambda: train_pit_stage(run, data, stage, models, None))
            models.policies[title(stage)] = run.placed(new_gpt(run, data), content["model"])
            return models

        return self.varied(name or label(stage, fields), train, **fields)

    def equal_budget(self, **fields) -> Trained:
        """RLHF with as many sampled responses as M_P^RL and PIT's stages take together, those that
        stage 1 draws as references included."""
        count = rl_samples(self.config, ("rlhf", *self.config.pit.curriculum))["sampled"]
        count, fields = count // self.config.ppo.batch, fields or CHOSEN["RLHF, equal budget"]
        return self.one_stage("rlhf", label("rlhf-long", fields), rlhf__iterations=count, **fields)

    def refiner(self, lessons: int, kind: str) -> GPT:
        """Train a policy on answers, feedback and rewrites, "before RL" or "after RL" of its
        answers, as M_P^RL's."""
        def make() -> GPT:
            base, name = self.base(), f"refiner-{lessons}"
            run, data, models = base.run, base.data, base.models
            fit = dataclasses.replace(run.config.pit_sft, steps=lessons * run.config.pit_sft.steps)
            with run.precision():
                content = run.stage(name, BASE + ("sft", "pit_sft"), lambda: train_refiner(
                    run, data, name, models.policies["M_P^SFT"], fit))
                policy = run.placed(new_gpt(run, data), content["model"])
                if kind == "before RL":
                    return policy
                content = run.stage(
                    f"{name}-rl", OF_R_P + ("pit_sft", "ppo", "rlhf"),
                    lambda: train_rlhf(run, data, f"{name}-rl", policy, models.rp))
            return run.placed(new_gpt(run, data), content["model"])

        return self.once(f"refiner {lessons} {kind}", make)

    def outside(self) -> Trained:
        """Train a reward model R_P on other pairs, which no training asks. (A quarter of its
        questions are also questions of this seed's; the responses and labels are others.)"""
        def train(run: Run, data: Data) -> Models:
            sft = run.stage("sft", BASE + ("sft",), lambda: train_sft(run, data))
            policy = run.placed(new_gpt(run, data), sft["model"])
            rp = run.stage("rp", OF_R_P, lambda: train_rp(run, data, policy))
            model = run.placed(new_reward_model(run, data), rp["model"])
            return Models(model, None, {"M_P^SFT": policy})

        return self.once("outside", lambda: self.trained(train, self.seed + OUTSIDE_SEED))

    def trainings(self) -> dict[str, tuple[Run, str, str]]:
        """Every training that a system stands on: its run, its stage there, and the section of the
        config that sets it."""
        run, stages = self.base().run, self.config.pit.curriculum
        lessons, kind = CHOSEN["lessons"], CHOSEN["refiner"]
        self.refiner(lessons, kind)
        found = {name: (run, name, name)
                 for name in ("sft", "pit_sft", "rp", "rpit", "rlhf", *stages)}
        found["refiner"] = run, f"refiner-{lessons}", "pit_sft"
        if kind == "after RL":
            found["refiner-rl"] = run, f"refiner-{lessons}-rl", "rlhf"
        found["rlhf-long"] = self.equal_budget().run, "rlhf", "rlhf"
        return found | {f"difference-{name}": (self.difference().run, name, name)
                        for name in stages}

    def responses(self, split: str, temperature: float) -> "Responses":
        """Return every system's responses, made once for all rows."""
        return self.once(f"{split}, {temperature}", lambda: Responses(self, split, temperature))


def label(stem: str, fields: dict) -> str:
    """Return a run's name that tells its settings."""
    return "-".join([stem, *(f"{key.split('__')[1]}-{value}" for key, value in fields.items())])


def log_of(run: Run, stage: str) -> list[dict]:
    """Return what a PPO stage logged of its iterations."""
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == stage and row["step"]]


def rl_samples(config, sections) -> dict[str, int]:
    """Responses that RL scored in the iterations of these stages of a config, and all that were
    sampled for them: where the policy gives a stage of PIT its references, these too."""
    stages = {name: getattr(config, name) for name in sections if name in RL}
    scored = sum(stage.iterations for stage in stages.values())
    sampled = sum(stage.iterations if name == "rlhf" else stage.batches(config.ppo)
                  for name, stage in stages.items())
    return {"scored": scored * config.ppo.batch, "sampled": sampled * config.ppo.batch}


def mean_length(lists) -> float:
    """Mean number of tokens."""
    return float(np.mean([len(ids) for ids in lists]))


class Responses:
    """Every system's responses to the first questions of a split, made when they are asked for.

    PIT, Self-Refine and best of n begin with the same y_0 ~ M_P^RL; those of other responses,
    `drafts`, may take their place. Random numbers belong to the temperature and the name of what is
    sampled, or its `purpose`, so that all rows of the evidence see the same samples.
    """

    def __init__(self, lab: Lab, split: str, temperature: float,
                 drafts: "Responses | None" = None, lessons: int | None = None,
                 number: int | None = None):
        self.lab, self.temperature = lab, temperature
        self.lessons = lessons or CHOSEN["lessons"]
        base = lab.base()
        self.run, self.data, self.models = base.run, base.data, base.models
        fold = self.data.folds[split]
        self.x = fold.x[:number or self.run.config.eval.prompts]
        self.judge = Judge(self.data, self.models, self.x)
        self.made, self.scored = {}, {}
        self.costs = {}  # by identity of a list, an answer: tokens sampled, tokens read, calls
        for side in ("y_w", "y_l"):
            self.keep(side, lambda: getattr(fold, side)[:len(self.x)])
        if drafts is not None:
            self.keep("M_P^RL", lambda: drafts.of("M_P^RL"))
            self.costs |= drafts.costs

    def keep(self, name: str, make, *before: list, calls: int = 0, read: float = 0.0) -> list:
        """Return make(), made once, that cost what came `before`, and calls and tokens `read`."""
        if name not in self.made:
            with self.run.precision():
                y = self.made[name] = make()
            own = np.array([calls * (mean_length(y) + 1), read, calls])  # with their ends
            self.costs[id(y)] = own + sum(self.costs[id(b)] for b in before)
        return self.made[name]

    def sampled(self, name: str, policy: GPT, prompts: list[list[int]], *before: list,
                purpose: str = "") -> list:
        """Sample what a policy writes after the prompts, in which `before` stands."""
        sampler = Sampler(self.run, self.data, self.temperature,
                          self.run.generator(f"{purpose or name}, {self.temperature}"))
        return self.keep(name, lambda: generate(sampler, policy, prompts), *before, calls=1,
                         read=mean_length(prompts))

    def answers(self, name: str, policy: GPT, purpose: str = "") -> list:
        prompts = [self.data.policy_prompt(ids) for ids in self.x]
        return self.sampled(name, policy, prompts, purpose=purpose)

    def of(self, policy: str) -> list:
        """Return what a policy of the base run answers."""
        return self.answers(policy, self.models.policies[policy])

    def best_of(self, number: int) -> list:
        """Return the best by R_P of y_0 and number - 1 more samples of M_P^RL."""
        policy = self.models.policies["M_P^RL"]
        tries = [self.of("M_P^RL")] + [self.answers(f"M_P^RL, try {k}", policy)
                                       for k in range(2, number + 1)]
        x = mean_length(map(self.data.policy_prompt, self.x))
        return self.keep(f"best of {number}", lambda: best_by(
            self.data, self.models, self.x, tries), *tries,
            read=sum(x + mean_length(y) + 1 for y in tries))

    def improved(self, name: str, policy: GPT, times: int = 1, start: str = "M_P^RL",
                 purpose: str = "") -> list:
        """Return y_times of a policy that improves what `start` answers."""
        y_ref = self.improved(name, policy, times - 1, start) if times > 1 else self.of(start)
        prompts = [self.data.pit_prompt(*pair) for pair in zip(self.x, y_ref)]
        return self.sampled(f"{name} {times} over {start}", policy, prompts, y_ref,
                            purpose=purpose)

    def pit(self, times: int = 1, start: str = "M_P^RL") -> list:
        return self.improved("PIT", self.lab.base().last(), times, start)

    def pit_sft(self, start: str = "M_P^RL") -> list:
        return self.improved("M_PIT^SFT", self.models.policies["M_PIT^SFT"], start=start)

    def refined(self, aspects=ASPECTS, times: int = 1, kind: str = CHOSEN["refiner"],
                own: bool = False) -> list:
        """Run Self-Refine by a rubric, `times` over: feedback, then a rewrite, of y_0 or of the
        policy's `own` answers."""
        policy, data = self.lab.refiner(self.lessons, kind), with_rubric(self.data, aspects)
        y_ref = (self.refined(aspects, times - 1, kind, own) if times > 1 else
                 self.answers(f"refiner {kind}", policy) if own else self.of("M_P^RL"))
        purpose = f"Self-Refine {times} by {aspects}" + own * " of its own"
        name = f"{purpose}, {kind}"
        prompts = [data.feedback(*pair) for pair in zip(self.x, y_ref)]
        notes = self.sampled(f"{name}, feedback", policy, prompts, y_ref,
                             purpose=f"{purpose}, feedback")
        prompts = [data.rewrite(*triple) for triple in zip(self.x, y_ref, notes)]
        return self.sampled(name, policy, prompts, notes, purpose=purpose)

    # ------------------------------------------------------------------------- what they are worth

    def gold(self, y: list) -> np.ndarray:
        return self.judge.grades(y)

    def outside(self, y: list) -> np.ndarray:
        """Scores by the reward model of other data, which reads the texts by its own tokenizer."""
        if id(y) not in self.scored:
            judge = self.lab.outside()
            x = [judge.data.prompt(prompt_text(self.data, ids)) for ids in self.x]
            texts = [judge.data.response(self.data.tokenizer.decode(ids)) for ids in y]
            scores = rp_scores(judge.data, judge.models.rp, x, texts).round(4)
            self.scored[id(y)] = scores, y  # kept, or another list might get its id
        return self.scored[id(y)][0]

    def gaps(self, y: list, y_ref: list) -> np.ndarray:
        """Return r_gap(x, y, y_ref)."""
        return gap_scores(self.data, self.models.rpit, self.x, y, y_ref)

    def cost(self, y: list) -> dict:
        """Tokens sampled (ends included), tokens read (by R_P too) and calls for one answer."""
        return dict(zip(("tokens", "read", "calls"), self.costs[id(y)].tolist()))

    def worth(self, y: list) -> dict:
        """Return the quality of a system's responses, and what they cost."""
        grades = self.judge.aspects(y)
        aspects = {name: float(np.mean([g[name] for g in grades])) for name in ASPECTS}
        return {"gold": float(self.gold(y).mean()), "aspects": aspects} | self.cost(y)

    def over(self, y: list, other: list) -> dict:
        """Return win - lose of y against the other, in points, by both judges."""
        return {name: 100 * float(np.sign(judge(y) - judge(other)).mean())
                for name, judge in (("gold", self.gold), ("outside", self.outside))}

    def beside(self, y: list, y_0: list, pit: list) -> dict:
        """Return a system's worth, what it wins over y_0, and what PIT wins over it."""
        return self.worth(y) | {"over y_0": self.over(y, y_0), "PIT over it": self.over(pit, y)}
