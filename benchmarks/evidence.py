"""What changes when one thing is changed: arms of the method side by side, seed by seed.

    python benchmarks/evidence.py                                   # every arm, seeds 1 to 3
    python benchmarks/evidence.py --arms group critic --seeds 4 5

An arm is the config with some fields changed. Each is given the same SETTINGS of learning rate and
target KL to choose from, first for RLHF, then on top of it for PIT: the one whose policy has the
best gold on validation questions of the first seed, at its own best temperature. With what was
chosen every seed is trained, and evaluated on test questions. "own best T" is chosen on validation
questions of the same seed.

Runs are runs/<name>-<arm>..., each on top of one whose finished stages it uses where they fit. What
is finished is a file in benchmarks/results and not made again; tables.py shows it.
"""

import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from script import ROOT

from data import Data, load_data
from pretrained.configure import load_config
from report.evaluate import evaluate
from report.judge import Judge
from runtime import interrupt
from runtime.config import Config
from runtime.files import write_whole
from runtime.launch import guard
from runtime.ranks import barrier, rank
from runtime.run import NotFinite, Run, values_of
from runtime.settings import UserError, read_arguments
from runtime.stages import inputs_of, title
from sample import Sampler, answer, improve
from train_pit import train_all, train_rlhf
from train_reward import Models, new_gpt, train_start

SEEDS = [1, 2, 3]
TEMPERATURES = (1.0, 0.5, 0.2)
SETTINGS = list(product((0.5, 1.0, 2.0), (1.5, 3.0)))  # lr_scale and kl_target: six trials an arm
PARTS = {"rlhf": ("rlhf",), "pit": ("stage0", "stage1")}  # what is chosen, and the stages of each


@dataclass
class Arm:
    """The fields that are changed, and the parts whose settings it chooses; the settings of other
    parts are those of the first arm."""
    fields: dict[str, object] = field(default_factory=dict)
    parts: tuple[str, ...] = tuple(PARTS)


GROUP = {"ppo.advantage": "group"}
CRITIC = {"ppo.advantage": "critic", "ppo.critic_lr": 1e-4}
JUDGE = "benchmarks/judge.py"  # called from the project's folder
ARMS = {  # the first is what the others are compared with
    "group": Arm(GROUP),
    "critic": Arm(CRITIC),
    "critic, lambda 1": Arm(CRITIC | {"ppo.lam": 1.0, "ppo.critic_lam": 1.0}),
    "critic, lambda 1 for it alone": Arm(CRITIC | {"ppo.critic_lam": 1.0}),
    "difference of R_P": Arm(GROUP | {"pit.score": "difference"}, ("pit",)),
    "drafts: best of 4": Arm(GROUP | {"stage1.reference": "best"}, ("pit",)),
    "drafts: half PIT's own": Arm(GROUP | {"stage1.reference": "improved"}, ("pit",)),
    "the judge for r_gap": Arm(GROUP | {"pit.score": f"{JUDGE}:gain"}, ("pit",)),
}
FIRST = next(iter(ARMS))


@dataclass
class Trained:
    """A finished run."""
    run: Run
    data: Data
    models: Models


def trained_to(part: str, args, name: str, seed: int, fields: dict, base: str = "") -> Trained:
    """Train or restore the supervised models and reward models ("start"), these and M_P^RL
    ("rlhf"), or all ("pit"), in a run of this name on top of `base`."""
    asked = {"run.name": name, "run.base": base, "run.seed": seed,
             "eval.temperatures": list(TEMPERATURES)} | fields
    run = Run(load_config(args.config, args.overrides + as_arguments(asked)))
    data = load_data(run)
    with run.precision():
        models = train_all(run, data) if part == "pit" else train_start(run, data)
        if part == "rlhf":
            content = run.stage("rlhf", inputs_of(run.config)["rlhf"], lambda: train_rlhf(
                run, data, models))
            models.policies[title("rlhf")] = run.placed(new_gpt(run, data), content["model"])
    run.write_config()
    return Trained(run, data, models)


def on_validation(trained: Trained, part: str) -> dict[str, float]:
    """Return the gold of M_P^RL's answers ("rlhf"), or of PIT's rewrites of them ("pit"), at each
    temperature."""
    run, data, policies = trained.run, trained.data, trained.models.policies
    x, golds = data.folds["valid"].x[:run.config.eval.prompts], {}
    judge = Judge(data, trained.models, x)
    for temperature in TEMPERATURES:
        sampler = Sampler(run, data, temperature, run.generator(f"validation {temperature}"))
        with run.precision():
            y = answer(sampler, policies[title("rlhf")], x)
            if part == "pit":
                y = improve(sampler, policies[title(run.config.pit.curriculum[-1])], x, y)
        golds[str(temperature)] = float(np.mean(judge.grades(y)))
    return golds


def once(args, arm: str, name: str, make, **more) -> dict:
    """Return what a file of the results holds; before that, write what make() returns. Raises
    UserError for a file that was made with other settings: the config's, the arm's, what every arm
    chooses from, and `more`."""
    path = args.results / f"{name}.json"
    config = load_config(args.config, args.overrides + as_arguments(ARMS[arm].fields))
    settings = {key: value for key, value in values_of(config).items()
                if not key.startswith("run.")} | more
    settings |= {"SETTINGS": list(map(list, SETTINGS)), "TEMPERATURES": list(TEMPERATURES)}
    if not path.exists():
        content = {"arm": arm, "settings": settings} | make()
        if rank() == 0:
            text = json.dumps(content, indent=1, allow_nan=False)
            write_whole(path, lambda file: file.write(text.encode()))
            print(f"written: {path}", flush=True)
        barrier()
    content = json.loads(path.read_text(encoding="utf-8"))
    known = values_of(Config()) | content["settings"]  # an option newer than the file
    differ = [key for key in settings if settings[key] != known.get(key)]
    if differ:
        raise UserError(f"{path}: was made with other values of {', '.join(differ)}; delete it, or "
                        "name another folder in --results")
    return content


def as_arguments(fields: dict) -> list[str]:
    """Return fields as arguments of a command."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in fields.items()]


def start_of(args, seed: int) -> str:
    """Return the run folder of a seed that has what all arms start from."""
    return str(trained_to("start", args, f"{args.name}-{seed}", seed, {}).run.folder)


def tries(part: str, setting: tuple) -> dict:
    """Return a setting as fields of the part's stages."""
    return {f"{stage}.{key}": value for stage in PARTS[part]
            for key, value in zip(("lr_scale", "kl_target"), setting)}


def choose(args, arm: str, seed: int) -> dict:
    """Return the fields that an arm chooses, what each setting reached, and the run of the best."""
    own, tried = ARMS[arm], {}
    if "rlhf" in own.parts:
        fields, base = {}, start_of(args, seed)
    else:
        first = chosen_of(args, FIRST)
        fields, base = first["fields"], first["folder"]
    for part in own.parts:
        runs, tried[part] = {}, {}
        for setting in SETTINGS:
            name = "-".join(map(str, (args.name, slug(arm), seed, part, *setting)))
            asked = own.fields | fields | tries(part, setting) | {"eval.equal_budget": False}
            try:
                trained = trained_to(part, args, name, seed, asked, base)
            except NotFinite as error:  # of all ranks at once: the other settings go on
                print(f"{name}: {error}", flush=True)
                interrupt.release()
                continue
            tried[part][str(setting)] = max(on_validation(trained, part).values())
            runs[str(setting)] = str(trained.run.folder), tries(part, setting)
        base, best = runs[max(tried[part], key=tried[part].get)]
        fields = fields | best
    return {"seed": seed, "fields": fields, "tried": tried, "folder": base}


def chosen_of(args, arm: str) -> dict:
    """Choose an arm's settings, or read what was chosen."""
    return once(args, arm, f"choices-{slug(arm)}", lambda: choose(args, arm, SEEDS[0]))


def measure(args, arm: str, seed: int) -> dict:
    """Train an arm with what was chosen; return its report, without texts."""
    chosen, first = chosen_of(args, arm), args.runs / f"{args.name}-{slug(FIRST)}-{seed}"
    base = (chosen["folder"] if seed == chosen["seed"] else
            str(first) if first.exists() and arm != FIRST else start_of(args, seed))
    trained = trained_to("pit", args, f"{args.name}-{slug(arm)}-{seed}", seed,
                         ARMS[arm].fields | chosen["fields"], base)
    valid = {part: on_validation(trained, part) for part in PARTS}
    with trained.run.precision():
        report = evaluate(trained.run, trained.data, trained.models)
    return {"final": title(trained.run.config.pit.curriculum[-1]), "valid": valid} | {
        key: value for key, value in report.items() if key not in ("examples", "responses")}


def slug(arm: str) -> str:
    """Return an arm's name as a part of a file's."""
    return "-".join("".join(c for c in arm if c not in ",:^'").split())


def main() -> None:
    """Make what is not there yet of the arms and seeds that are asked for."""
    args, args.overrides = read_arguments(
        __doc__.splitlines()[0],
        ("--arms", {"nargs": "+", "choices": list(ARMS), "default": list(ARMS)}),
        ("--seeds", {"nargs": "+", "type": int, "default": SEEDS}),
        ("--results", {"type": Path, "default": ROOT / "benchmarks" / "results"}),
        config=str(ROOT / "configs" / "quick.toml"))
    config = load_config(args.config, args.overrides)
    if config.data.files:
        raise UserError("the arms are compared by the hidden judge of bills: leave data.files out")
    args.name, args.runs, failed = config.run.name, Path(config.run.dir), []
    args.results.mkdir(parents=True, exist_ok=True)
    for arm in args.arms:
        try:
            for seed in args.seeds:
                once(args, arm, f"{slug(arm)}-{seed}", lambda: measure(args, arm, seed),
                     chosen=chosen_of(args, arm)["fields"])
        except NotFinite as error:  # of all ranks at once: the other arms go on
            failed.append(f"{arm}: {error}")
            print(failed[-1], flush=True)
            interrupt.release()
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    guard(main)
