"""What changes when a line of the config changes: runs with the line beside the config's own.

    python benchmarks/ablate.py --config configs/quick.toml --seeds 1 2 3 \\
        --line="ppo.epochs=1" --line="ppo.advantage=critic ppo.critic_lr=1e-4"

Each line is one or several fields. Every seed of a line is a run on top of the config's own run of
that seed, so that only what the line changes is trained anew. With --choose each line, and the
config, is first given settings of learning rate and target KL, for RLHF and then on top of it for
PIT: SETTINGS, then the neighbours of the best, on the first seed, by gold on validation questions,
each at its own best temperature.

What is finished is a file in --results and not made again. Two calls at once, with --run.ranks=1
each, share the work. At the end tables.py writes tables there.
"""

import json
import re
import time
from collections import namedtuple
from itertools import product
from pathlib import Path

import numpy as np
import tables

from data import load_data
from pretrained.configure import load_config
from report.evaluate import evaluate, golds_on_validation
from report.judge import Judge
from runtime import interrupt
from runtime.config import Config
from runtime.files import Busy, lock, write_whole
from runtime.launch import guard
from runtime.ranks import barrier, rank, ranks
from runtime.run import NotFinite, Run, inputs_among, iterations, values_of
from runtime.settings import UserError, read_arguments
from runtime.stages import inputs_of, rl_inputs, title
from sample import Sampler, answer, improve
from ablations.scores import load_functions
from train_pit import train_all, train_to_rlhf
from train_reward import train_start

TEMPERATURES = (1.0, 0.5, 0.2)
CHOSEN = ("lr_scale", "kl_target")  # of RLHF, and of PIT's stages alike
SETTINGS = list(product((0.5, 1.0, 2.0), (1.5, 3.0)))  # that the choice begins with
LOGGED = ("reward", "kl", "gold", "entropy", "explained_variance", "length")
FORMAT = 2  # of the results; 1 had no grades of single questions
OWN = ""  # the line of the config as it is
Trained = namedtuple("Trained", "run data models")  # a finished run


def config_of(args, line: str, fields: dict) -> Config:
    """Return the config with the command's own fields, those of a line, and `fields`, in this
    order. Raises UserError for what is no field."""
    more = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in fields.items()]
    return load_config(args.config, args.overrides + [f"--{one}" for one in fields_in(line)] + more)


def fields_in(line: str) -> list[str]:
    """Return the fields of a line, "section.key=value"; also of one as train_pit.py takes it, with
    "--" before each and quotes of the shell around a value."""
    parts = re.split(r"\s+(?=(?:--)?\w+\.\w+=)", line.strip())
    return [re.sub(r"^(?:--)?(\w+\.\w+=)(?:'(.*)'|(.*))$", r"\1\2\3", one) for one in parts if one]


def changed(args, line: str) -> set[str]:
    """Return the stages that a line makes anew; of the config as it is, all."""
    own, first = (config_of(args, one, {}) for one in (line, OWN))
    made, known = inputs_of(own), inputs_of(first)
    return {stage for stage in made if line == OWN or stage not in known
            or inputs_among(own, made[stage]) != inputs_among(first, known[stage])}


def refuse_unfit(args, line: str) -> None:
    """Raise UserError for a line that cannot be compared, before anything is trained."""
    config = config_of(args, line, {})
    for name, value in (("data.files", config.data.files), ("eval.judge", config.eval.judge)):
        if value and args.bills:
            raise UserError(f"lines are compared by the hidden judge of bills: leave {name} out")
    load_functions(config)
    chosen = [f"{stage}.{key}" for stage in ("rlhf", *config.pit.curriculum) for key in CHOSEN]
    for name in [one.partition("=")[0] for one in fields_in(line)]:
        if name == "eval.temperatures" or name.startswith("run."):
            raise UserError(f"--line={line}: {name} is set by this script")
        if args.choose and name in chosen:
            raise UserError(f"--line={line}: {name} is set by this script under --choose")


def run_name(args, line: str, seed: int, *more) -> str:
    """Return the name of a run: the config's own of a seed is <name>-<seed>."""
    return "-".join(map(str, [args.name, *([tables.slug(line)] if line else []), seed, *more]))


def trained_to(part: str, args, line: str, name: str, fields: dict) -> Trained:
    """Train or restore the supervised models and reward models ("start"), these and M_P^RL
    ("rlhf"), or all ("pit"), in a run of this name."""
    run = Run(config_of(args, line, {"run.name": name} | fields))
    data = load_data(run)
    with run.precision():
        models = (train_all(run, data) if part == "pit" else train_to_rlhf(run, data)
                  if part == "rlhf" else train_start(run, data))
    run.write_config()
    return Trained(run, data, models)


def on_validation(trained: Trained, part: str) -> dict[str, float]:
    """Return the gold of M_P^RL's answers ("rlhf"), or of PIT's rewrites of them ("pit"), at each
    temperature."""
    run, data, policies = trained.run, trained.data, trained.models.policies
    x, golds = data.folds["valid"].x[:run.config.eval.prompts], {}
    judge = Judge(data, None, x)
    for temperature in TEMPERATURES:
        sampler = Sampler(run, data, temperature, run.generator(f"validation {temperature}"))
        with run.precision():
            y = answer(sampler, policies[title("rlhf")], x)
            if part == "pit":
                y = improve(sampler, policies[title(run.config.pit.curriculum[-1])], x, y)
        golds[str(temperature)] = float(np.mean(judge.grades(y)))
    return golds


def once(args, line: str, seed: int, name: str, make, **more) -> dict:
    """Return what a file of the results holds; before that, write what make() returns. Raises
    UserError for a file that was made with other settings: the config's, the line's, and `more`,
    Busy where another call is making it."""
    path = args.results / f"{name}.json"
    settings = {key: value for key, value in values_of(config_of(args, line, {})).items()
                if not key.startswith("run.")} | {
        "TEMPERATURES": list(TEMPERATURES), "FORMAT": FORMAT} | more
    alone = args.ranks == 1 and not path.exists() and lock(args.runs / f"{args.name}-claims" / name)
    if not path.exists():
        content = {"line": line, "seed": seed, "settings": settings} | make()
        if rank() == 0:
            text = json.dumps(content, allow_nan=False)
            write_whole(path, lambda file: file.write(text.encode()))
            print(f"written: {path}", flush=True)
        barrier()
    if alone:
        alone.close()
    content = tables.read(path)
    known = values_of(Config()) | content["settings"]  # an option newer than the file
    differ = [key for key in settings if settings[key] != known.get(key)]
    if differ:
        raise UserError(f"{path}: was made with other values of {', '.join(differ)}; delete it, or "
                        "name another folder in --results")
    return content


def reward_models(args, line: str, seed: int) -> Trained:
    """Train or restore a line's supervised models and reward models, on top of the config's own."""
    base = str(reward_models(args, OWN, seed).run.folder) if line != OWN else args.base
    return trained_to("start", args, line, run_name(args, line, seed, "start"),
                      {"run.seed": seed, "run.base": base})


def start_of(args, line: str, seed: int) -> str:
    """Return a run folder with what a line's RL starts from: the config's own, but where the line
    changes it."""
    own = line if changed(args, line) & {"data", "sft", "pit_sft", "rp", "rpit"} else OWN
    return str(reward_models(args, own, seed).run.folder)


def choose(args, line: str, seed: int) -> dict:
    """Return the fields that are best for a line, what each setting reached, and the run of the
    best. Parts that the line does not change keep what was chosen for the config as it is."""
    anew, tried, fields, base = changed(args, line), {}, {}, start_of(args, line, seed)
    for part, stages in ("rlhf", ["rlhf"]), ("pit", config_of(args, line, {}).pit.curriculum):
        if not anew & {*stages}:
            first = chosen_of(args, OWN)
            fields |= {key: value for key, value in first["fields"].items()
                       if key.partition(".")[0] in stages}
            base = first["folder"] if Path(first["folder"]).exists() else base
            continue
        golds, settings, start = {}, list(SETTINGS), fields | {
            "run.base": base, "run.seed": seed, "eval.equal_budget": False}
        for setting in settings:  # it grows
            name = run_name(args, line, seed, part, *setting)
            try:
                trained = trained_to(part, args, line, name, start | stage_fields(stages, setting))
                golds[setting] = max(on_validation(trained, part).values())
            except NotFinite as error:  # of all ranks at once: the other settings go on
                print(f"{name}: {error}", flush=True)
                interrupt.release()
            if setting == settings[-1] and golds:
                settings += untried(settings, max(golds, key=golds.get))
        if not golds:
            raise NotFinite(f"{line or 'the config'}: no setting of {part} is finite")
        best = max(golds, key=golds.get)
        base = str(args.runs / run_name(args, line, seed, part, *best))
        fields = fields | stage_fields(stages, best)
        tried[part] = {str(setting): gold for setting, gold in golds.items()}
    return {"fields": fields, "tried": tried, "folder": base}


def stage_fields(stages: list[str], setting: tuple) -> dict[str, float]:
    """Return the fields of a setting, the same for all of these stages."""
    return {f"{stage}.{key}": value for stage in stages for key, value in zip(CHOSEN, setting)}


def untried(settings: list[tuple], best: tuple) -> list[tuple]:
    """Return the neighbours of the best setting that were not tried: half and twice its rate, half
    and twice its target KL. So no best setting lies at an edge."""
    rate, target = best
    return [one for one in ((rate / 2, target), (rate * 2, target), (rate, target / 2),
                            (rate, target * 2)) if one not in settings]


def chosen_of(args, line: str) -> dict:
    """Choose a line's settings on the first seed, or read what was chosen; without --choose, none
    are."""
    if not args.choose:
        return {"fields": {}, "folder": "", "seed": None}
    return once(args, line, args.seeds[0], f"choices-{tables.slug(line)}",
                lambda: choose(args, line, args.seeds[0]),
                SETTINGS=list(map(list, SETTINGS)))


def base_of(args, line: str, seed: int, chosen: dict) -> str:
    """Return the run that a line's run of a seed stands on: the trial that was chosen, or the
    config's own run, or, where that one is still to be made, its start."""
    if seed == chosen["seed"] and Path(chosen["folder"]).exists():
        return chosen["folder"]
    own = args.runs / run_name(args, OWN, seed)
    if line != OWN and own.exists():
        return str(own)
    return start_of(args, line, seed) if args.choose else args.base


def columns(trained: Trained) -> dict[str, dict[str, list]]:
    """Return the figures of each iteration that the logs have of the stages of RL."""
    found = {}
    for stage in rl_inputs(trained.run.config):
        lines = iterations(trained.run.used[stage].parent, stage)
        found[stage] = {key: [round(one[key], 4) for one in lines]
                        for key in LOGGED if lines and key in lines[-1]}
    return found


def measure(args, line: str, seed: int, chosen: dict) -> dict:
    """Train a line with what was chosen; return its report without texts, each system's gold on
    validation questions by temperature, and the logs of RL."""
    trained = trained_to("pit", args, line, run_name(args, line, seed), chosen["fields"] | {
        "run.base": base_of(args, line, seed, chosen), "run.seed": seed,
        "eval.temperatures": list(TEMPERATURES)})
    with trained.run.precision():
        valid, report = golds_on_validation(*trained), evaluate(*trained)
    return {"final": title(trained.run.config.pit.curriculum[-1]), "valid": valid,
            "log": columns(trained)} | {
        key: value for key, value in report.items() if key not in ("examples", "responses")}


def finish(args, line: str, seed: int) -> None:
    """Make a line's result of a seed; before it the config's own, which it stands on."""
    chosen = chosen_of(args, line)
    if line != OWN:
        finish(args, OWN, seed)
    once(args, line, seed, f"{tables.slug(line)}-{seed}", lambda: measure(args, line, seed, chosen),
         chosen=chosen["fields"])


def work_through(args, make) -> list[str]:
    """Call make(args, line, seed) for each, those that another call is making last; return what
    failed."""
    jobs, failed = [(line, seed) for line in args.line for seed in args.seeds], []
    while jobs:
        waiting = []
        for line, seed in jobs:
            try:
                make(args, line, seed)
            except Busy:
                if ranks() > 1:
                    raise
                waiting.append((line, seed))
            except NotFinite as error:  # of all ranks at once: the others go on
                failed.append(f"{line or 'the config'}, seed {seed}: {error}")
                print(failed[-1], flush=True)
                interrupt.release()
        if waiting == jobs:
            time.sleep(10)
        jobs = waiting
    return failed


def each_once(args, measured, kind: str, table, **more) -> None:
    """Make measured(args, line, seed) of each line and seed that has no result yet, `more` as in
    `once`; print the table of the results. `kind` is a key that only these results have. Raises
    UserError with what failed, and before any training for other results in the folder."""
    tables.results_of(args.results, kind)
    failed = work_through(args, lambda _, line, seed: once(
        args, line, seed, f"{tables.slug(line)}-{seed}", lambda: measured(args, line, seed),
        **more))
    if failed:
        raise UserError("; ".join(failed))
    if rank() == 0:
        print(table(args.results))


def arguments(about: str, results: str, *more: tuple[str, dict], bills: bool = True):
    """Return the arguments of the command line, of which each line can be trained; make the folder
    of the results, by default <run.dir>/<name>-`results`. With `bills` other data are refused."""
    args, args.overrides = read_arguments(
        about, ("--line", {"action": "append", "default": [], "help": "fields: 'a.b=1 c.d=2'"}),
        ("--seeds", {"nargs": "+", "type": int, "default": [1, 2, 3], "help": "by default 1 2 3"}),
        ("--results", {"type": Path, "help": f"a folder; by default <run.dir>/<name>-{results}"}),
        *more)
    args.choose, args.bills = getattr(args, "choose", False), bills
    run = config_of(args, OWN, {}).run
    args.name, args.runs, args.ranks, args.base = run.name, Path(run.dir), run.ranks, run.base
    args.results = args.results or args.runs / f"{args.name}-{results}"
    args.line = list(dict.fromkeys([OWN, *args.line]))
    for line in args.line:
        refuse_unfit(args, line)
        if not changed(args, line):
            raise UserError(f"--line={line}: the config has these values, or nothing is trained by "
                            "them: there is nothing to compare")
    try:
        args.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{args.results}: cannot make this folder ({error.strerror}); name another "
                        "one in --results") from None
    return args


def main() -> None:
    args = arguments(__doc__, "results", ("--choose", {
        "action": "store_true", "help": "first find each line's rate and KL"}))
    tables.read_results(args.results)  # a file that is none is refused before any training
    failed = work_through(args, finish)
    if rank() == 0:
        print(f"{tables.write(args.results)}\nwritten: {args.results / 'tables.md'}")
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    guard(main)
