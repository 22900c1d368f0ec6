"""What every script needs and what is not the method.

Configuration (typed sections from a TOML file plus --section.key=value), run folders, checkpoints,
devices and ranks, random generators, and the log. Nothing here knows what is being trained.

Several ranks are processes with the same weights, or a shard of them, that share each batch: each
works on its rows, and `all_sum` adds up losses, counts and gradients. On a CPU `run.ranks = 2`
starts the second process by itself; under torchrun the ranks are torchrun's.
"""

import argparse
import dataclasses
import sys
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from tqdm import tqdm

from tools import checks, files, interrupt, llama, state
from tools.launch import choose_for, pick_device, start_ranks, usual_ranks
from tools.ranks import (all_sum, barrier, gather, gather_rows, in_step, mine,  # noqa: F401
                         random_numbers, rank, ranks, step_together, together)  # also for others
from tools.settings import UserError, fill, read_arguments, to_toml


class NotFinite(UserError):
    """A number that a training must not go on with."""


def zero_or_more(default, most: float = sys.float_info.max):
    """A number that may be 0; all others have to be above it."""
    return field(default=default, metadata={"low": 0, "high": most})


def any_number(default: float):
    """A number that may be below 0."""
    return field(default=default, metadata={"low": -sys.float_info.max})


Comparison = Literal["wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw"]  # of Eq. 2
Layer = Literal["qkv", "out", "gate_up", "down"]                   # linear layers of a block
COMPARISONS, LAYERS = get_args(Comparison), get_args(Layer)


@dataclass
class RunSection:
    name: str = "synthetic"     # the run's folder is <dir>/<name>
    dir: str = "runs"
    base: str = ""              # a run folder whose finished stages are used where they fit
    seed: int = zero_or_more(1)
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: cuda where there is one, or cpu
    ranks: int = zero_or_more(0)  # processes on a CPU, one thread each; 0: one a core, at most 8
    amp: Literal["auto", "bf16", "off"] = "auto"            # autocast; auto: bf16 on a GPU
    compile: bool = False       # torch.compile of the blocks: saves memory, samples slower
    shard: bool = False         # split weights and optimisers over the ranks (FSDP2)
    log_every: int = 20         # supervised steps between two lines of metrics.jsonl
    save_every: float = zero_or_more(60.0)  # seconds between two saves inside of a stage


@dataclass
class DataSection:
    files: list[str] = field(default_factory=list)  # preference pairs; none: make bills
    bills: int = 120_000        # pairs to make where no file is given
    total: Literal["first", "last"] = "first"  # bills: the place of the total; last: the control
    valid: int = 1000           # questions held out for choices, with all their pairs
    test: int = 1000            # questions held out for the report
    max_prompt: int = 32        # tokens; longer conversations lose their first turns
    max_response: int = 40      # tokens, the end included; also the longest sample


@dataclass
class TokenizerSection:
    model: str = ""             # .model or tokenizer.json; none: init_from's, or one trained here
    eos: str = ""               # the piece that ends a response; none: the tokenizer's own
    vocab: int = 256
    byte_fallback: bool = False  # spell unknown characters in bytes (256 pieces of the vocabulary)


@dataclass
class TemplateSection:
    system: str = "{x}"                                      # a turn of the prompt by each role
    user: str = "{x}"
    assistant: str = "{x}"
    policy: str = "<|user|>{x}<|assistant|>"                 # what M_P and R_P read before y
    pit: str = "<|user|>{x}<|draft|>{y_ref}<|better|>"       # what M_PIT and R_PIT read before y


@dataclass
class ModelSection:
    init_from: str = ""         # Hugging Face folder of a Llama; sets the shape but context
    layers: int = 3
    heads: int = 4
    kv_heads: int = 4
    width: int = 128
    hidden: int = 256           # of the SwiGLU
    context: int = 128
    head_width: int = zero_or_more(0)  # 0: width / heads
    vocab: int = zero_or_more(0)  # rows of the embedding; 0: one for each piece of the tokenizer
    rope_theta: float = 10_000.0
    rope_scaling: list[float] = field(default_factory=list)  # Llama 3: factor, low, high, context
    norm_eps: float = 1e-5
    tied: bool = True           # the output layer shares the embedding's weights
    portion: int = zero_or_more(0)  # positions that a pass takes; 0: 2,048, on a GPU 65,536
    look_every: int = zero_or_more(0)  # new tokens between looks at who has ended; 0: 1, GPU 16


@dataclass
class LoRASection:
    """Adapters instead of full training; all models share one frozen trunk, model.init_from."""
    rank: int = zero_or_more(0)  # 0: full training
    alpha: float = 32.0         # the change of a weight is alpha / rank B A
    linears: list[Layer] = field(default_factory=lambda: list(LAYERS))


@dataclass
class FitSection:
    """One supervised training: M_P^SFT, M_PIT^SFT, R_P, R_PIT, or the judge."""
    steps: int = 1000
    batch: int = 64             # pairs a step
    lr: float = 1e-3
    warmup: int = zero_or_more(50)  # steps
    weight_decay: float = zero_or_more(0.01)
    clip: float = 1.0           # largest norm of the gradient


@dataclass
class RewardSection:
    pool: Literal["sum", "last"] = "sum"  # sum over y's tokens, or the last token's score
    lm_coef: float = zero_or_more(0.5)  # of the language-model loss beside (GRM, arXiv 2406.10216)
    logp_feature: bool = True   # score tokens by the trunk's own log-probabilities too
    terms: list[Comparison] = field(default_factory=lambda: list(COMPARISONS))  # of Eq. 2


@dataclass
class RefineSection:
    """Self-Refine, a rival by prompting: the policy reads `feedback`, then `rewrite`."""
    feedback: str = ""          # with {x} and {y_ref}; none: no such row in the report
    rewrite: str = ""           # with {x}, {y_ref} and {feedback}


@dataclass
class PPOSection:
    batch: int = 256            # responses an iteration
    epochs: int = 1
    minibatches: int = 4
    lr: float = 2e-4
    critic_lr: float = 1e-3
    critic_warmup: int = zero_or_more(4)  # iterations in which only the critic learns
    clip: float = 0.2
    gamma: float = zero_or_more(1.0, most=1)
    lam: float = zero_or_more(0.95, most=1)
    temperature: float = 1.0    # of rollouts, old and new log-probabilities alike
    no_eos_score: float = any_number(-5.0)  # of a response that did not end, in spreads
    grad_clip: float = 1.0
    kl_power: float = zero_or_more(4.0)  # of KL / target, by which beta rises above it; 0: fixed
    kl_wall: float = field(default=16.0, metadata={"low": 1})  # times beta, the most it rises to


@dataclass
class StageSection:
    """One run of PPO."""
    iterations: int = 50
    beta: float = zero_or_more(0.03)  # coefficient of the KL in the reward, below kl_target
    kl_target: float = 2.0      # nats a response; see ppo.kl_coefficient
    reference: Literal["data", "policy"] = "policy"  # source of y_ref: y_l and y_w, or M_P^RL
    lr_scale: float = 1.0


@dataclass
class PITSection:
    curriculum: list[str] = field(default_factory=lambda: ["stage0", "stage1"])  # see Config
    score: Literal["gap", "difference"] = "gap"  # R_PIT(x, y, y_ref), or R_P(x, y) - R_P(x, y_ref)


@dataclass
class EvalSection:
    split: Literal["valid", "test"] = "test"  # valid for every choice, test for the report
    prompts: int = 1000
    temperatures: list[float] = field(default_factory=lambda: [1.0, 0.5], metadata={"low": 0})
    iterations: int = 4
    best_of: int = 4
    examples: int = 8           # prompts that are shown with all their responses
    equal_budget: bool = False  # let RLHF go on, for the samples of PIT's stages
    seed: int = zero_or_more(1)  # of the evaluation's samples and of the examples that are shown


@dataclass
class Config:
    run: RunSection = field(default_factory=RunSection)
    data: DataSection = field(default_factory=DataSection)
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    template: TemplateSection = field(default_factory=TemplateSection)
    model: ModelSection = field(default_factory=ModelSection)
    lora: LoRASection = field(default_factory=LoRASection)
    sft: FitSection = field(default_factory=FitSection)
    pit_sft: FitSection = field(default_factory=FitSection)
    rp: FitSection = field(default_factory=FitSection)
    rpit: FitSection = field(default_factory=FitSection)
    judge: FitSection = field(default_factory=FitSection)  # a reward model that judges real data
    reward: RewardSection = field(default_factory=RewardSection)
    ppo: PPOSection = field(default_factory=PPOSection)
    rlhf: StageSection = field(default_factory=StageSection)
    stage0: StageSection = field(default_factory=lambda: StageSection(reference="data"))
    stage1: StageSection = field(default_factory=StageSection)  # a stage2 would be one more line
    pit: PITSection = field(default_factory=PITSection)
    refine: RefineSection = field(default_factory=RefineSection)
    eval: EvalSection = field(default_factory=EvalSection)

    def stages(self) -> list[str]:
        """The stages that pit.curriculum may name, in the order in which reports show them."""
        return [f.name for f in dataclasses.fields(self) if f.name.startswith("stage")]


def load_config(path: str, overrides: list[str] = ()) -> Config:
    """The config of a TOML file, with `--section.key=value` arguments on top of it.

    Raises UserError for a file that is missing or no TOML, unknown or ill-typed fields, and
    values out of range.
    """
    config = Config()
    fill(config, path, overrides)
    if config.model.init_from:
        llama.settle(config)
    checks.check_config(config, " ".join([path, *overrides]))
    return config


ONLY_SPEED = {"model.portion", "model.look_every"}  # as run.amp, they change only the rounding
LOGS = ("metrics.jsonl", "samples.jsonl")
FORMAT = 3  # of checkpoints; 1 had rotary pairs (i, i + C/2), 2 splits by the whole prompt


def command_line(description: str, *arguments) -> tuple[argparse.Namespace, Config]:
    """Parse --config, --section.key=value and the script's own (name, options) arguments."""
    args, overrides = read_arguments(description, *arguments)
    return args, load_config(args.config, overrides)


def optimizer_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: torch.Tensor,
                   clip: float, what: str) -> float:
    """Take one optimiser step from gradients of *summed* losses; returns the norm before clipping.

    Gradients and `count` (tokens, or pairs) are summed over ranks and divided, so that neither
    micro-batches nor ranks of unequal size change the mean.

    Raises NotFinite, naming the tensor, for a gradient that is not finite; the weights are then
    still the good ones.
    """
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    sharded = not all(map(state.whole, trained.values()))
    grads = [grad.to_local() if sharded else grad for grad in trained.values()]
    flat = torch.cat([grad.flatten() for grad in grads] + [count.reshape(1).to(grads[0])])
    if sharded:
        flat[-1] = all_sum(flat[-1:]) / ranks()  # FSDP has averaged the gradients over ranks
    else:
        all_sum(flat)
    flat = flat[:-1] / flat[-1].clamp_min(1)
    norm = all_sum(flat.norm() ** 2).sqrt() if sharded else flat.norm()
    parts = flat.split([grad.numel() for grad in grads])  # views: they are clipped with the whole
    if not torch.isfinite(norm):
        bad = [name for name, part in zip(trained, parts) if not torch.isfinite(part).all()]
        raise NotFinite(f"{what}: the gradient of {(bad or ['some tensor'])[0]} is not finite; "
                        "what was good is saved; lower the rate under another --run.name")
    flat *= (clip / (norm + 1e-6)).clamp(max=1.0)
    for grad, part in zip(grads, parts):
        grad.copy_(part.view_as(grad))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()


class Run:
    """A run folder with all that is in it; with `trains` false no stage may be missing."""

    def __init__(self, config: Config, trains: bool = True):
        self.config, self.trains = config, trains
        self.device = pick_device(config.run.device)
        start_ranks(config.run.ranks or usual_ranks(config, self.device), self.device)
        config.run.ranks = ranks()
        choose_for(self.device, config)
        checks.check_config(config, f"on {ranks()} ranks")  # torchrun may start others
        self.folder = Path(config.run.dir) / config.run.name
        self.base = Path(config.run.base) if config.run.base else self.folder
        self.resumed = {"step": -1}     # what a stage that was cut off has left
        self.lines = defaultdict(list)  # of the logs, written by the current stage
        self.last_good = None           # step that was done, and what it changed
        self.told = {} if rank() == 0 else None  # warnings
        checks.warn_once(self.told, "config", checks.doubts(self.device.type, config, trains))
        self.saved = self.begun = time.perf_counter()
        self.lock = files.lock(self.folder) if rank() == 0 and trains else None
        barrier()

    def precision(self):
        """A context in which matrix products are in bfloat16, where run.amp asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, self.config.run.amp == "bf16",
                              cache_enabled=False)  # a cast would outlive the weights' update

    def placed(self, model, weights: dict | None = None):
        """The model on the device, with whole `weights` if given. Under run.shard each rank keeps a
        share of weights, gradients and optimiser states, by torch's FSDP2: a block is put together
        when its turn comes. Raises UserError where weights do not fit."""
        try:
            model = model if weights is None else state.put(model, weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:160]  # it names every weight
            raise UserError(f"a checkpoint does not fit the model: {reason}; "
                            "delete the run folder or choose another --run.name") from None
        if not self.config.run.shard or ranks() == 1:
            return model.to(self.device)
        step_together()
        return state.shard(model, self.device.type, ranks())

    def generator(self, purpose: str, seed: int | None = None) -> torch.Generator:
        """For one purpose, the same on all ranks and devices; no draws depend on another's."""
        text = f"{self.config.run.seed if seed is None else seed}/{purpose}"
        return torch.Generator().manual_seed(zlib.crc32(text.encode()))

    def stage(self, name: str, sections: tuple[str, ...], make) -> dict:
        """The checkpoint of a stage: reused if it is there, else made, saved and returned.

        `sections` of the config, or single fields of it ("section.key"), and the seed decide what
        the stage yields; they are kept in the checkpoint, and one that was made with other values
        is refused with the fields that differ. `make()` returns a dict of tensors and plain values.
        """
        inputs = {f"{section}.{key}": value
                  for section, keys in dataclasses.asdict(self.config).items()
                  for key, value in keys.items()
                  if {section, f"{section}.{key}"} & {*sections, "run.seed"}
                  and f"{section}.{key}" not in ONLY_SPEED} | {"format": FORMAT}
        if "lora" in sections and self.config.lora.rank:  # adapters belong to one trunk's weights
            inputs["the weights of model.init_from"] = llama.checksum(self.config.model.init_from)
        for path in dict.fromkeys((self.folder / f"{name}.pt", self.base / f"{name}.pt")):
            content = self.fitting(path, inputs)
            if content:
                return content
        if not self.trains:
            raise UserError(f"{(self.folder / name).absolute()}.pt: no such checkpoint; run "
                            "train_pit.py first, or name the --run.base that it was made on")
        partial = self.folder / f"{name}.part.pt"
        self.resumed = self.fitting(partial, inputs) or {"step": -1, "seconds": 0.0, "lines": {}}
        barrier()  # no rank makes what another one has found
        self.write_config()
        self.take_up_logs(name)
        self.begun = self.saved = time.perf_counter()
        self.saving, self.last_good = (partial, inputs), None
        try:
            content = make() | {"inputs": inputs}
        except NotFinite:
            if self.last_good:
                self.save_part(*self.last_good)  # what is good
            raise
        self.save(self.folder / f"{name}.pt", content)
        if rank() == 0:
            partial.unlink(missing_ok=True)
        self.last_good = self.resumed["state"] = None  # memory
        interrupt.release()
        barrier()
        return content

    def save(self, path: Path, content: dict) -> None:
        """Write a checkpoint, from the first rank, after the lines of the logs that go with it."""
        if rank() == 0:
            for name in LOGS:
                files.sync(self.folder / name)
            seconds = self.resumed["seconds"] + time.perf_counter() - self.begun
            files.save(path, content | {"seconds": seconds})
        self.saved = time.perf_counter()

    def fitting(self, path: Path, inputs: dict) -> dict | None:
        """A checkpoint, if it is there and was made with these inputs. Raises UserError for one of
        this run that was made with others."""
        if not path.exists():
            return None
        content = files.load(path)
        made = content["inputs"]
        differ = [key for key in inputs | made if inputs.get(key) != made.get(key)]
        if not differ:
            return content
        note = f"{path} was made with other values (or none) of {', '.join(differ)}"
        if path.parent == self.folder:
            raise UserError(f"{note}; choose another --run.name, or delete it")
        if rank() == 0:
            print(f"{note}: it is made anew in {self.folder}", file=sys.stderr)
        return None

    def write_config(self) -> None:
        """Keep the resolved config, once no finished stage has refused it."""
        if rank() == 0:
            files.write_whole(self.folder / "config.toml",
                          lambda file: file.write(to_toml(self.config).encode()))

    def take_up_logs(self, stage: str) -> None:
        """Leave in the logs, of the stage that starts, the lines up to where it was cut off."""
        for name in LOGS:
            self.lines[name] = self.resumed["lines"].get(name, [])
            if rank() == 0:
                files.rewrite(self.folder / name, f'{{"stage": "{stage}"', self.lines[name])

    def log(self, name: str, line: dict) -> None:
        """Append a line to metrics.jsonl or samples.jsonl, from the first rank; not again one that
        was there when the stage was cut off."""
        if rank() == 0 and line["step"] > self.resumed["step"]:
            self.lines[name].append(files.append(self.folder / name, line))

    def steps(self, name: str, total: int, changing):
        """The steps 1 to `total` of the current stage, after those done before it was cut off, with
        a progress bar. `changing` is an object whose attributes are all that steps change: models,
        optimisers, tensors and numbers. They are restored before the first step and saved between
        steps, once in run.save_every seconds and before a signal ends the run. Random numbers
        belong to a step (`self.generator(f"... {step}")`), so that none have to be kept."""
        if self.resumed.get("state"):
            state.restore(changing, self.resumed["state"])
        done = max(0, self.resumed["step"])
        return tqdm(self.one_by_one(done, total, changing), f"{name:>12}", total, initial=done,
                    disable=rank() != 0, dynamic_ncols=True, mininterval=0.5)

    def one_by_one(self, done: int, total: int, changing):
        interrupt.waiting = True
        for step in range(done + 1, total + 1):
            self.last_good = step - 1, changing
            yield step
            due = rank() == 0 and time.perf_counter() - self.saved > self.config.run.save_every
            due, asked = all_sum(torch.tensor([float(due), float(interrupt.asked)])).tolist()
            if due or asked:
                self.save_part(step, changing)
            if asked:
                interrupt.leave(f"step {step} of {total}, {self.saving[0]}")

    def save_part(self, step: int, changing) -> None:
        """Save the current stage as it is after a step."""
        path, inputs = self.saving
        if rank() == 0 or together():  # shards are gathered by all
            self.save(path, {"inputs": inputs, "step": step, "lines": dict(self.lines),
                             "state": state.kept(changing)})
