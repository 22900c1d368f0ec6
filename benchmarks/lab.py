"""What the evidence stands on: models, each trained once, and the responses of every system.

A lab is a seed and a place of the total. Its base run has the data and the method's models; other
trainings stand on the base run's finished stages, in folders of their own.
"""

import copy
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import Data, load_data  # noqa: E402
from report import rubric  # noqa: E402
from evaluation.measure import gap_scores, rp_scores  # noqa: E402
from report.evaluate import Judge, stage_seconds  # noqa: E402
from report.rivals import best_by, train_refiner, with_rubric  # noqa: E402
from evaluation.show import prompt_text  # noqa: E402
from model import GPT  # noqa: E402
from pretrained.configure import load_config  # noqa: E402
from runtime.checks import refuse_short_context  # noqa: E402
from runtime.launch import choose_for, pick_device  # noqa: E402
from runtime.run import Run  # noqa: E402
from sample import generate  # noqa: E402
from train_pit import train_all, train_pit_stage, train_rlhf  # noqa: E402
from train_reward import (BASE, R_P, SUPERVISED, Models, new_gpt, new_reward_model,  # noqa: E402
                          train_rp, train_sft, train_start)

OUTSIDE_SEED = 1000  # added to a seed: the data of the reward model that only judges
CONTEXT = 208        # tokens: Self-Refine reads a question, a draft, a rubric and notes
RUBRIC = rubric.ASPECTS

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
    models: Models | None = None


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

    def opened(self, name: str = "", seed: int | None = None, **fields) -> Trained:
        """Open a run of this lab with its data, before training. `fields`: section__key=value."""
        base = f"{self.name}-{self.seed if seed is None else seed}"
        changed = {"run.seed": self.seed if seed is None else seed,
                   "run.name": base + (name and f"-{name}"),
                   "run.base": str(Path(self.config.run.dir) / base) if name else ""}
        changed |= {key.replace("__", "."): value for key, value in fields.items()}
        run = Run(load_config(self.path, self.overrides + [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in changed.items()]))
        data = load_data(run)
        asked = with_rubric(data, RUBRIC)
        refuse_short_context([asked.feedback, asked.rewrite], run.config)
        return Trained(run, data)

    def once(self, name: str, make):
        """Return what make() returns, made once."""
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    def base(self) -> Trained:
        """Return the method's models, with the config's settings."""
        return self.once("base", lambda: with_models(self.opened()))

    def varied(self, name: str, **fields) -> Trained:
        """Train the method's models with other settings; what these leave alone is the base's."""
        self.base()
        return self.once(name, lambda: with_models(self.opened(name, **fields)))

    def difference(self) -> Trained:
        """Run PPO on R_P(x, y) - R_P(x, y_ref) instead of r_gap."""
        return self.both_stages(pit__score="difference", **CHOSEN["difference"])

    def both_stages(self, **fields) -> Trained:
        """Train PIT's stages with other settings."""
        return self.varied(label("both", fields), **fields)

    def supervised(self, name: str, **fields) -> Trained:
        """Train the supervised models and the reward models with other settings."""
        self.base()
        return self.once(name, lambda: with_models(self.opened(name, **fields), train_start))

    def one_stage(self, name: str, stage: str, **fields) -> tuple[Run, GPT]:
        """Run RLHF ("rlhf") or PIT's first stage ("stage0") alone with other settings."""
        def make():
            opened = self.opened(name, **fields)
            run, data = opened.run, opened.data
            with run.precision():
                models = train_start(run, data)
                sft = models.policies["M_P^SFT"]
                content = run.stage(stage, *(
                    (R_P + ("ppo", "rlhf"), lambda: train_rlhf(run, data, stage, sft, models.rp))
                    if stage == "rlhf" else
                    (SUPERVISED + ("ppo", "pit.score", stage),
                     lambda: train_pit_stage(run, data, stage, models, None))))
            return run, run.placed(new_gpt(run, data), content["model"])
        self.base()
        return self.once(name, make)

    def equal_budget(self, **fields) -> tuple[Run, GPT]:
        """Run RLHF with as many sampled responses as M_P^RL and PIT's stages take together, those
        that stage 1 draws as references included."""
        count = rl_samples(self.config, ("rlhf", *self.config.pit.curriculum))["sampled"]
        count, fields = count // self.config.ppo.batch, fields or CHOSEN["RLHF, equal budget"]
        return self.one_stage(label("rlhf-long", fields), "rlhf", rlhf__iterations=count, **fields)

    def refiner(self, lessons: int, kind: str) -> GPT:
        """Train a policy on answers, feedback and rewrites, "before RL" or "after RL" of its
        answers, as M_P^RL's."""
        def make():
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
                    f"{name}-rl", R_P + ("pit_sft", "ppo", "rlhf"),
                    lambda: train_rlhf(run, data, f"{name}-rl", policy, models.rp))
            return run.placed(new_gpt(run, data), content["model"])
        return self.once(f"refiner {lessons} {kind}", make)

    def outside(self) -> Trained:
        """Train a reward model R_P on other pairs, which no training asks. (A quarter of its
        questions are also this seed's; the responses and labels are others.)"""
        def make():
            opened = self.opened(seed=self.seed + OUTSIDE_SEED)
            run, data = opened.run, opened.data
            with run.precision():
                sft = run.stage("sft", BASE + ("sft",), lambda: train_sft(run, data))
                policy = run.placed(new_gpt(run, data), sft["model"])
                rp = run.stage("rp", R_P, lambda: train_rp(run, data, policy))
            model = run.placed(new_reward_model(run, data), rp["model"])
            return Trained(run, data, Models(model, None, {"M_P^SFT": policy}))
        return self.once("outside", make)

    def responses(self, split: str, temperature: float) -> "Responses":
        """Return every system's responses, made once for all rows."""
        return self.once(f"{split}, {temperature}", lambda: Responses(self, split, temperature))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every training that a system stands on."""
        lessons, kind = CHOSEN["lessons"], CHOSEN["refiner"]
        self.refiner(lessons, kind)
        stages = {name: name for name in (
            "sft", "pit_sft", "rp", "rpit", "rlhf", "stage0", "stage1")}
        stages["refiner"] = f"refiner-{lessons}"
        if kind == "after RL":
            stages["refiner-rl"] = f"refiner-{lessons}-rl"
        found = stage_seconds(self.base().run, list(stages.values()))
        long, difference = self.equal_budget()[0], self.difference().run
        of_difference = stage_seconds(difference, self.config.pit.curriculum)
        return {name: found[stage] for name, stage in stages.items()} | {
            "rlhf-long": stage_seconds(long, ["rlhf"])["rlhf"]} | {
            f"difference-{stage}": seconds for stage, seconds in of_difference.items()}


def log_of(run: Run, stage: str) -> list[dict]:
    """Return what a PPO stage logged of its iterations."""
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == stage and row["step"]]


def rl_samples(config, stages) -> dict[str, int]:
    """Count the responses that RL scored in the iterations of these stages of a config, and all
    that were sampled for them: where the policy gives a stage of PIT its references, these too."""
    scored = sampled = 0
    for name in stages:
        stage = getattr(config, name)
        scored += stage.iterations
        sampled += stage.iterations * (1 + (name != "rlhf" and stage.reference == "policy"))
    return {"scored": scored * config.ppo.batch, "sampled": sampled * config.ppo.batch}


def with_models(opened: Trained, train=train_all) -> Trained:
    """Train or restore the models of a run: all, or those that `train` makes."""
    with opened.run.precision():
        opened.models = train(opened.run, opened.data)
    opened.run.write_config()
    return opened


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
        self.made, self.scored = {}, []
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
        generator = self.run.generator(f"{purpose or name}, {self.temperature}")
        return self.keep(name, lambda: generate(
            self.run, self.data, policy, prompts, self.temperature, generator), *before,
            calls=1, read=mean_length(prompts))

    def cost(self, y: list) -> dict:
        """Return tokens sampled (ends included), tokens read (by R_P too) and calls an answer."""
        return dict(zip(("tokens", "read", "calls"), self.costs[id(y)].tolist()))

    def answers(self, name: str, policy: GPT, purpose: str = "") -> list:
        prompts = [self.data.policy(ids) for ids in self.x]
        return self.sampled(name, policy, prompts, purpose=purpose)

    def of(self, policy: str) -> list:
        """Return what a policy of the base run answers."""
        return self.answers(policy, self.models.policies[policy])

    def best_of(self, number: int) -> list:
        """Return the best by R_P of y_0 and number - 1 more samples of M_P^RL."""
        policy = self.models.policies["M_P^RL"]
        tries = [self.of("M_P^RL")] + [self.answers(f"M_P^RL, try {k}", policy)
                                       for k in range(2, number + 1)]
        x = mean_length(map(self.data.policy, self.x))
        return self.keep(f"best of {number}", lambda: best_by(
            self.run, self.data, self.models, self.x, tries), *tries,
            read=sum(x + mean_length(y) + 1 for y in tries))

    def improved(self, name: str, policy: GPT, times: int = 1, start: str = "M_P^RL",
                 purpose: str = "") -> list:
        """Return y_times of a policy that improves what `start` answers."""
        y_ref = self.improved(name, policy, times - 1, start) if times > 1 else self.of(start)
        prompts = [self.data.pit(*pair) for pair in zip(self.x, y_ref)]
        return self.sampled(f"{name} {times} over {start}", policy, prompts, y_ref,
                            purpose=purpose)

    def pit(self, times: int = 1, start: str = "M_P^RL") -> list:
        return self.improved("PIT", last_stage(self.models), times, start)

    def refined(self, aspects=RUBRIC, times: int = 1, kind: str | None = None,
                own: bool = False) -> list:
        """Run Self-Refine by a rubric, `times` over: feedback, then a rewrite, of y_0 or of the
        policy's `own` answers."""
        kind = kind or CHOSEN["refiner"]
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
        """Score by the reward model of other data, which reads the texts by its own tokenizer."""
        known = [scores for other, scores in self.scored if other is y]
        if not known:
            judge = self.lab.outside()
            data, x = judge.data, [judge.data.prompt(prompt_text(self.data, ids)) for ids in self.x]
            texts = [data.response(self.data.tokenizer.decode(ids)) for ids in y]
            known = [rp_scores(data, judge.models.rp, x, texts).round(4)]
            self.scored.append((y, known[0]))
        return known[0]

    def gaps(self, y: list, y_ref: list) -> np.ndarray:
        """Return r_gap(x, y, y_ref)."""
        return gap_scores(self.data, self.models.rpit, self.x, y, y_ref)

    def worth(self, y: list) -> dict:
        """Return the quality of a system's responses, and what they cost."""
        grades = self.judge.aspects(y)
        return {"gold": float(self.gold(y).mean()),
                "aspects": {name: float(np.mean([g[name] for g in grades])) for name in RUBRIC}
                } | self.cost(y)

    def over(self, y: list, other: list) -> dict:
        """Return win - lose of y against the other, in points, by both judges."""
        return {name: 100 * float(np.sign(judge(y) - judge(other)).mean())
                for name, judge in (("gold", self.gold), ("outside", self.outside))}


def mean_length(lists) -> float:
    """Return the mean number of tokens."""
    return float(np.mean([len(ids) for ids in lists]))


def last_stage(models: Models) -> GPT:
    """Return the policy of PIT's last stage."""
    return [policy for name, policy in models.policies.items() if name.startswith("PIT stage")][-1]


def label(stem: str, fields: dict) -> str:
    """Name a run by its settings."""
    return "-".join([stem, *(f"{key.split('__')[1]}-{value}" for key, value in fields.items())])
