"""What every script needs and what is not the method.

Configuration (typed sections from a TOML file plus --section.key=value), run folders, checkpoints,
devices and ranks, random generators, and the log. Nothing here knows what is being trained.

Several ranks are processes that hold the same weights and share each batch: every rank works on
its rows, and `all_sum` adds up losses, counts and gradients. On a CPU `run.ranks = 2` starts the
second process by itself; under torchrun the ranks are torchrun's.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import typing
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from tools.checks import nearest, problems


class UserError(Exception):
    """Something that the user can mend. Its one line says what, where, and how."""


@dataclass
class RunSection:
    name: str = "synthetic"     # the run's folder is <dir>/<name>
    dir: str = "runs"
    base: str = ""              # a run folder whose finished stages are used where they fit
    seed: int = 1
    device: str = "auto"        # auto, cuda, mps or cpu
    ranks: int = 1              # processes to start on a CPU, one thread each
    amp: str = "auto"           # "bf16" autocast, or "off"; auto: bf16 on a GPU
    compile: str = "auto"       # torch.compile of the blocks: "on", "off"; auto: on a GPU
    log_every: int = 20         # supervised steps between two lines of metrics.jsonl


@dataclass
class DataSection:
    files: list[str] = field(default_factory=list)  # preference pairs; none: make bills
    bills: int = 120_000        # pairs to make where no file is given
    total: str = "first"        # bills: the place of the total; "last" is the control
    valid: int = 1000           # pairs held out for choices
    test: int = 1000            # pairs held out for the report
    max_prompt: int = 32        # tokens; longer pairs are dropped and counted
    max_response: int = 40      # tokens, the end included; also the longest sample


@dataclass
class TokenizerSection:
    model: str = ""             # a SentencePiece .model; none: train one on the data
    vocab: int = 256
    byte_fallback: bool = False  # spell unknown characters in bytes (256 pieces of the vocabulary)


@dataclass
class TemplateSection:
    policy: str = "<|user|>{x}<|assistant|>"                 # what M_P and R_P read before y
    pit: str = "<|user|>{x}<|draft|>{y_ref}<|better|>"       # what M_PIT and R_PIT read before y


@dataclass
class ModelSection:
    layers: int = 3
    heads: int = 4
    kv_heads: int = 4
    width: int = 128
    hidden: int = 256           # of the SwiGLU
    context: int = 128
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True           # the output layer shares the embedding's weights
    portion: int = 0            # positions a training or scoring pass takes; 0: 2,048, GPU 65,536
    look_every: int = 0         # new tokens between looks at which rows ended; 0: 1, GPU 16


@dataclass
class FitSection:
    """One supervised training: M_P^SFT, M_PIT^SFT, R_P or R_PIT."""
    steps: int = 1000
    batch: int = 64             # pairs a step
    lr: float = 1e-3
    warmup: int = 50            # steps
    weight_decay: float = 0.01
    clip: float = 1.0           # largest norm of the gradient


@dataclass
class RewardSection:
    pool: str = "sum"           # "sum" over y's tokens, or "last" token
    lm_coef: float = 0.5        # weight of the language-model loss beside (GRM, arXiv 2406.10216)
    logp_feature: bool = True   # score tokens by the trunk's own log-probabilities too
    terms: list[str] = field(default_factory=lambda: [
        "wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw"])      # the comparisons of Eq. 2


@dataclass
class PPOSection:
    batch: int = 256            # responses an iteration
    epochs: int = 1
    minibatches: int = 4
    lr: float = 2e-4
    critic_lr: float = 1e-3
    critic_warmup: int = 4      # iterations in which only the critic learns
    clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    temperature: float = 1.0    # of rollouts, old and new log-probabilities alike
    no_eos_score: float = -5.0  # of a response that did not end, in spreads of the reward
    grad_clip: float = 1.0
    kl_horizon: float = 500.0   # responses over which beta adapts; 0 keeps beta fixed


@dataclass
class StageSection:
    """One run of PPO."""
    iterations: int = 50
    beta: float = 0.03          # first and least coefficient of the KL in the reward
    kl_target: float = 2.0      # nats a response
    reference: str = "policy"   # source of y_ref: "data" (y_l and y_w) or "policy" (M_P^RL)
    lr_scale: float = 1.0


@dataclass
class PITSection:
    curriculum: list[str] = field(default_factory=lambda: ["stage0", "stage1"])
    score: str = "gap"          # "gap": R_PIT(x, y, y_ref); "difference": R_P(x, y) - R_P(x, y_ref)


@dataclass
class EvalSection:
    split: str = "test"         # "valid" for every choice, "test" for the report
    prompts: int = 1000
    temperatures: list[float] = field(default_factory=lambda: [1.0, 0.5])
    iterations: int = 4
    best_of: int = 4
    equal_budget: bool = False  # also train RLHF with PIT's whole budget of samples
    seed: int = 1               # of the evaluation's samples and of the examples that are shown


@dataclass
class Config:
    run: RunSection = field(default_factory=RunSection)
    data: DataSection = field(default_factory=DataSection)
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    template: TemplateSection = field(default_factory=TemplateSection)
    model: ModelSection = field(default_factory=ModelSection)
    sft: FitSection = field(default_factory=FitSection)
    pit_sft: FitSection = field(default_factory=FitSection)
    rp: FitSection = field(default_factory=FitSection)
    rpit: FitSection = field(default_factory=FitSection)
    reward: RewardSection = field(default_factory=RewardSection)
    ppo: PPOSection = field(default_factory=PPOSection)
    rlhf: StageSection = field(default_factory=StageSection)
    stage0: StageSection = field(default_factory=lambda: StageSection(reference="data"))
    stage1: StageSection = field(default_factory=StageSection)
    pit: PITSection = field(default_factory=PITSection)
    eval: EvalSection = field(default_factory=EvalSection)


def typed(value, kind, where: str):
    """`value` as type `kind` (int, float, str, bool or list of these), or UserError."""
    if typing.get_origin(kind) is list:
        if isinstance(value, list):
            return [typed(item, typing.get_args(kind)[0], where) for item in value]
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    name = getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind)
    form = ", such as '[\"one\", \"two\"]'" * (typing.get_origin(kind) is list)
    raise UserError(f"{where}: {value!r} is not of type {name}{form}")


def set_field(config: Config, section: str, key: str, value, where: str) -> None:
    """Set one field of the config, refusing unknown names with the nearest known one."""
    sections = [f.name for f in dataclasses.fields(Config)]
    if section not in sections:
        raise UserError(f"{where}: unknown section {section!r}; {nearest(section, sections)}")
    target = getattr(config, section)
    kinds = typing.get_type_hints(type(target))
    if key not in kinds:
        raise UserError(f"{where}: unknown key {key!r} in [{section}]; {nearest(key, kinds)}")
    setattr(target, key, typed(value, kinds[key], f"{where}: {section}.{key}"))


def load_config(path: str, overrides: list[str] = ()) -> Config:
    """The config of a TOML file, with `--section.key=value` arguments on top of it.

    Raises UserError for a file that is missing or no TOML, unknown or ill-typed fields, and
    values out of range.
    """
    try:
        sections = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot read the config: {error}") from None
    config = Config()
    for section, keys in sections.items():
        if not isinstance(keys, dict):
            raise UserError(f"{path}: {section!r} stands outside of any [section]")
        for key, value in keys.items():
            set_field(config, section, key, value, path)
    for argument in overrides:
        name, equals, text = argument.removeprefix("--").partition("=")
        section, dot, key = name.partition(".")
        if not (argument.startswith("--") and equals and dot):
            raise UserError(f"argument {argument!r}: expected --section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word is a string
        set_field(config, section, key, value, f"argument --{name}")
    check_config(config, " ".join([path, *overrides]))
    return config


ONLY_SPEED = {"model.portion", "model.look_every"}  # as run.amp, they change only the rounding
FORMAT = 2  # of checkpoints; 1 had rotary pairs (i, i + C/2)


def check_config(config: Config, where: str) -> None:
    """Raises UserError for values that cannot work."""
    for problem in problems(config):
        raise UserError(f"{where}: {problem}")


def to_toml(config: Config) -> str:
    """The config as TOML text."""
    lines = []
    for section, keys in dataclasses.asdict(config).items():
        lines.append(f"\n[{section}]")
        lines += [f"{key} = {json.dumps(v, ensure_ascii=False)}" for key, v in keys.items()]
    return "\n".join(lines) + "\n"


def command_line(description: str, *arguments) -> tuple[argparse.Namespace, Config]:
    """Parse --config, --section.key=value and the script's own (name, options) arguments."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     epilog="any field: --section.key=value, see runtime.py")
    parser.add_argument("--config", required=True, help="a TOML file, see configs/")
    for name, options in arguments:
        parser.add_argument(name, **options)
    args, overrides = parser.parse_known_args()
    return args, load_config(args.config, overrides)


def guard(main) -> None:
    """Run a script's main function; a UserError ends it with one line and exit code 2."""
    try:
        main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        stop_ranks()


_children: list[subprocess.Popen] = []


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the best there is. Raises UserError if it is absent."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    if not there[name]:
        raise UserError(f"run.device = {name!r}: this machine has none; try --run.device=cpu")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0)) if name == "cuda" else None)


def start_ranks(count: int, device: torch.device) -> None:
    """Join torchrun's ranks, or on a CPU start `count` - 1 more processes of this command.

    Each rank works with one thread: matrices this small do not gain from a second one.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if count > 1 and "RANK" not in os.environ:
            meeting = tempfile.mkdtemp() + "/ranks"
            shared = {"WORLD_SIZE": str(count), "PIT_MEETING": f"file://{meeting}"}
            for number in range(1, count):
                _children.append(subprocess.Popen(
                    [sys.executable, *sys.argv], env=os.environ | shared | {"RANK": str(number)},
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
            os.environ.update(shared, RANK="0")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=os.environ.get("PIT_MEETING", "env://"),
            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))


def stop_ranks() -> None:
    """Leave the process group and end the processes that this one started."""
    failed = sys.exc_info()[0] is not None
    if dist.is_initialized() and not failed:
        dist.destroy_process_group()
    for child in _children:
        if failed:
            child.terminate()
        child.wait()
    _children.clear()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mine(items):
    """This rank's share of a sequence that all ranks hold: every n-th item, with n ranks."""
    return items[rank()::ranks()]


def random_numbers(count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """This rank's share of `count` rows of numbers in [0, 1), the same for any number of ranks."""
    return mine(torch.rand(count, length, generator=generator, device=generator.device))


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, summed in place over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gather(items: list) -> list:
    """The lists of all ranks as one, in the order that `mine` dealt them from."""
    if not dist.is_initialized():
        return items
    parts = [None] * ranks()
    dist.all_gather_object(parts, items)
    return [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)]


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def descend(params: list, optimizer: torch.optim.Optimizer, count: torch.Tensor, clip: float,
            what: str) -> float:
    """One optimiser step from gradients of *summed* losses; returns the norm before clipping.

    Gradients and `count` (tokens, or pairs) are summed over ranks and divided, so that neither
    micro-batches nor ranks of unequal size change the mean.

    Raises UserError where the gradient is not finite; the weights are then still the good ones.
    """
    trained = [p for p in params if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in trained] + [count.reshape(1).to(trained[0])])
    all_sum(flat)
    flat = flat[:-1] / flat[-1].clamp_min(1)
    norm = flat.norm()
    if not torch.isfinite(norm):
        raise UserError(f"{what}: the gradient is not finite; lower its learning rate")
    flat *= (clip / (norm + 1e-6)).clamp(max=1.0)
    for param, part in zip(trained, flat.split([p.numel() for p in trained])):
        param.grad = part.view_as(param)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()


def save(path: Path, content: dict) -> None:
    """Write a checkpoint whole or not at all: to a temporary file, synced, then renamed."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> dict:
    """Read a checkpoint to the CPU. Raises UserError where it is missing or damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train it first") from None
    except Exception as error:  # torch raises several kinds for a damaged file
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot read the checkpoint ({line}); delete it") from None


class Run:
    """A run folder with all that is in it; with `trains` false no stage may be missing."""

    def __init__(self, config: Config, trains: bool = True):
        self.config, self.trains = config, trains
        self.device = pick_device(config.run.device)
        start_ranks(config.run.ranks, self.device)
        config.run.ranks = ranks()
        check_config(config, f"on {ranks()} ranks")  # torchrun may have started another number
        self.settle()
        self.folder = Path(config.run.dir) / config.run.name
        self.base = Path(config.run.base) if config.run.base else self.folder
        if config.run.base and not self.base.is_dir():
            raise UserError(f"run.base = {config.run.base!r}: there is no such run folder")
        if rank() == 0 and trains:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.folder}: cannot write the run folder: {error}") from None
        barrier()

    def settle(self) -> None:  # what the device decides
        run, model, gpu = self.config.run, self.config.model, self.device.type == "cuda"
        model.portion = model.portion or (65_536 if gpu else 2048)
        model.look_every = model.look_every or (16 if gpu else 1)
        run.amp = ("bf16" if gpu else "off") if run.amp == "auto" else run.amp
        run.compile = ("on" if gpu else "off") if run.compile == "auto" else run.compile

    def precision(self):
        """A context in which matrix products are in bfloat16, where run.amp asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, self.config.run.amp == "bf16",
                              cache_enabled=False)  # a cast would outlive the weights' update

    def compiled(self, model):
        """The model, with its blocks compiled where run.compile asks for it."""
        if self.config.run.compile == "on":
            model.compile_blocks()
        return model

    def generator(self, purpose: str, device="cpu", seed: int | None = None) -> torch.Generator:
        """A generator for one purpose, the same on all ranks; no draws depend on another's."""
        text = f"{self.config.run.seed if seed is None else seed}/{purpose}"
        return torch.Generator(device).manual_seed(zlib.crc32(text.encode()))

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
        for path in dict.fromkeys((self.folder / f"{name}.pt", self.base / f"{name}.pt")):
            if not path.exists():
                continue
            content = load(path)
            made = content["inputs"]
            differ = [key for key in inputs | made if inputs.get(key) != made.get(key)]
            if not differ:
                return content
            note = f"{path} was made with other values of {', '.join(differ)}"
            if path.parent == self.folder:
                raise UserError(f"{note}; choose another --run.name, or delete it")
            if rank() == 0:
                print(f"{note}: {name} is made anew", file=sys.stderr)
        if not self.trains:
            raise UserError(f"{(self.folder / name).absolute()}.pt: no such checkpoint; run "
                            "train_pit.py first, or name the --run.base that it was made on")
        barrier()  # no rank makes what another one has found
        self.write_config()
        self.forget(name)
        start = time.perf_counter()
        content = make()
        content |= {"inputs": inputs, "seconds": time.perf_counter() - start}
        if rank() == 0:
            save(self.folder / f"{name}.pt", content)
        barrier()
        return content

    def write_config(self) -> None:
        """Keep the resolved config, once no finished stage has refused it."""
        if rank() == 0:
            (self.folder / "config.toml").write_text(to_toml(self.config), encoding="utf-8")

    def forget(self, stage: str) -> None:
        """Drop the log lines of a stage that starts again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.folder / name
            if rank() == 0 and path.exists():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n")  # a torn line goes too
                        and not line.startswith(f'{{"stage": "{stage}"')]
                path.write_text("".join(kept), encoding="utf-8")

    def log(self, name: str, line: dict) -> None:
        """Append a line to metrics.jsonl or samples.jsonl, from the first rank."""
        if rank() == 0:
            with open(self.folder / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def bar(self, items, name: str):
        """A progress bar over items, shown by the first rank."""
        return tqdm(items, desc=f"{name:>12}", disable=rank() != 0, dynamic_ncols=True,
                    mininterval=0.5)
