"""A run: its folder, checkpoints, random generators and log, and the optimiser's step.

A stage is made once and used again; what was cut off goes on where it was last saved. Nothing here
knows what is being trained.

Several ranks are processes with the same weights, or a shard of them, that share each batch: each
works on its rows, and `all_sum` adds up losses, counts and gradients. On a CPU a run starts them by
itself; under torchrun the ranks are torchrun's.
"""

import json
import sys
import time
import zlib
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from runtime import checks, files, interrupt, operations, state
from runtime.checks import NotFinite
from runtime.config import ONLY_SPEED, Config
from runtime.launch import choose_for, pick_device, start_ranks, usual_ranks
from runtime.ranks import all_sum, barrier, rank, ranks, step_together
from runtime.settings import UserError, fill, to_toml

LOGS = ("metrics.jsonl", "samples.jsonl")
FORMAT = 5  # of checkpoints; 4 had other parts of stages, and one lambda for policy and critic


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


def values_of(config: Config) -> dict:
    """Return all fields of a config, by their names "section.key"."""
    return {name: value for name, value, *_ in checks.fields_of(config)}


def inputs_among(config: Config, sections: tuple[str, ...]) -> dict:
    """Return the fields of these sections, or single fields, that decide what is made of them."""
    return {key: value for key, value in values_of(config).items()
            if {key, key.partition(".")[0]} & {*sections} and key not in ONLY_SPEED}


def iterations(folder: Path, stage: str) -> list[dict]:
    """Return the lines that a run's metrics have of a stage, but for the one before it began."""
    log = (folder / LOGS[0]).read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, log) if line["stage"] == stage and line["step"] > 0]


def standing_on(folder: Path, base: str) -> list[Path]:
    """Return a run's folder, the one of its run.base, of that one's run.base, and so on."""
    folders = [folder]
    while base and Path(base) not in folders:
        folders.append(Path(base))
        config = Config()
        if (folders[-1] / "config.toml").exists():
            fill(config, str(folders[-1] / "config.toml"), [])
        base = config.run.base
    return folders


class Run:
    """A run folder with all that is in it; with `trains` false no stage may be missing."""

    def __init__(self, config: Config, trains: bool = True):
        self.config, self.trains = config, trains
        self.device = pick_device(config.run.device)
        count = (config.run.ranks or usual_ranks(config, self.device)) if trains else 1
        start_ranks(count, self.device)
        config.run.ranks = ranks()
        choose_for(self.device, config)
        checks.check_config(config, f"on {ranks()} ranks")  # torchrun may start others
        self.folder = Path(config.run.dir) / config.run.name
        self.folders = standing_on(self.folder, config.run.base)
        self.used = {}                  # the file of each stage
        self.resumed: dict = {"step": -1}  # what a stage that was cut off has left
        self.lines = defaultdict(list)  # of the logs, written by the current stage
        self.last_good = None           # step that was done, and what it changed
        self.told = {} if rank() == 0 else None  # warnings
        checks.warn_once(self.told, "config", checks.doubts(self.device.type, config, trains))
        self.saved = self.begun = time.perf_counter()
        self.lock = files.lock(self.folder) if rank() == 0 and trains else None
        barrier()

    def precision(self):
        """Return a context in which matrix products are in bfloat16, where run.amp asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, self.config.run.amp == "bf16",
                              cache_enabled=False)  # a cast would outlive the weights' update

    def placed(self, model, weights: dict | None = None):
        """Return the model on the device, with whole `weights` if given. Under run.shard each rank
        keeps a share of weights, gradients and optimiser states, by torch's FSDP2: a block is put
        together when its turn comes. Raises UserError where weights do not fit."""
        try:
            model = model if weights is None else state.load_weights(model, weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:160]  # it names every weight
            raise UserError(f"a checkpoint does not fit the model: {reason}; "
                            "delete the run folder or choose another --run.name") from None
        if not self.config.run.shard or ranks() == 1:
            return model.to(self.device)
        step_together()
        return state.shard_model(model, self.device.type, ranks())

    def generator(self, purpose: str, seed: int | None = None) -> torch.Generator:
        """Make one purpose's generator, the same on all ranks and devices; its draws depend on no
        other's."""
        text = f"{self.config.run.seed if seed is None else seed}/{purpose}"
        return torch.Generator().manual_seed(zlib.crc32(text.encode()))

    def stage(self, name: str, sections: tuple[str, ...], make) -> dict:
        """Return the checkpoint of a stage: reused if it is there, else made and saved.

        `sections` of the config, or single fields of it ("section.key"), and the seed decide what
        the stage yields; they are kept in the checkpoint, and one that was made with other values
        is refused with the fields that differ. `make()` returns a dict of tensors and plain values.
        """
        inputs = self.inputs(sections)
        notes, partial = [], self.folder / f"{name}.part.pt"
        for path in [folder / f"{name}.pt" for folder in self.folders]:
            content, note = self.fitting(path, inputs)
            if content:
                self.used[name] = path
                if self.lock and path.parent == self.folder:  # a kill may have left it
                    partial.unlink(missing_ok=True)
                return content
            notes += [note] * bool(note)
        if not self.trains:
            raise UserError("; ".join(notes) or f"{(self.folder / name).absolute()}.pt: no such "
                            "checkpoint; run train_pit.py first, or name the --run.base that it "
                            "was made on")
        for note in notes if rank() == 0 else []:
            print(f"{note}: it is made anew in {self.folder}", file=sys.stderr)
        self.used[name] = self.folder / f"{name}.pt"
        self.resumed = self.fitting(partial, inputs)[0] or {
            "step": -1, "seconds": 0.0, "operations": 0.0, "lines": {}}
        barrier()  # no rank makes what another one has found
        self.write_config()
        self.take_up_logs(name)
        self.begun = self.saved = time.perf_counter()
        self.counted = operations.done
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
            files.save(path, content | {
                "seconds": self.resumed["seconds"] + time.perf_counter() - self.begun,
                "operations": self.resumed["operations"]  # the ranks have about equal shares
                + ranks() * (operations.done - self.counted)})
        self.saved = time.perf_counter()

    def fitting(self, path: Path, inputs: dict, weights: bool = True) -> tuple[dict | None, str]:
        """Return a checkpoint, if it is there and was made with these inputs, and else why it does
        not fit. Raises UserError for one of this run that was made with others."""
        if not path.exists():
            return None, ""
        content = files.load(path, weights)
        made = content["inputs"]
        sections = {key.partition(".")[0] for key in made}
        known = {key: value for key, value in values_of(type(self.config)()).items()
                 if key.partition(".")[0] in sections} | made  # an option newer than the file
        differ = [key for key in inputs | made if inputs.get(key) != known.get(key)]
        if not differ:
            return content, ""
        names = [f"{key.removesuffix('_file')} (its file has changed)" if key.endswith("_file")
                 else key for key in differ]
        note = f"{path} was made with other values (or none) of {', '.join(names)}"
        if path.parent == self.folder:
            raise UserError(f"{note}; take its own settings (--config {self.folder / 'config.toml'}"
                            f"), or another --run.name with --run.base={self.folder}")
        return None, note

    def refuse_others(self, stages: dict[str, tuple[str, ...]]) -> None:
        """Raise UserError for a stage of this run's folder, finished or not, that was made with
        other values: before anything is made anew. `stages` are all that the config has."""
        for name, sections in stages.items():
            for path in (self.folder / f"{name}.pt", self.folder / f"{name}.part.pt"):
                self.fitting(path, self.inputs(sections), weights=False)

    def inputs(self, sections: tuple[str, ...]) -> dict:
        """Return what decides a stage: these sections or fields of the config, and the seed."""
        return inputs_among(self.config, (*sections, "run.seed")) | {"format": FORMAT}

    def write_config(self) -> None:
        """Keep the resolved config, which no finished stage has refused."""
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
        """Yield the steps 1 to `total` of the current stage, after those done before it was cut
        off, with a progress bar. `changing` is an object whose attributes are all that steps
        change: models, optimisers, tensors and numbers. They are restored before the first step and
        saved between steps, once in run.save_every seconds and before a signal ends the run. Random
        numbers belong to a step (`self.generator(f"... {step}")`), so that none have to be kept."""
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
        if rank() == 0 or self.config.run.shard:  # shards are gathered by all
            self.save(path, {"inputs": inputs, "step": step, "lines": dict(self.lines),
                             "state": state.snapshot(changing)})
