"""Adapters on one frozen trunk: their arithmetic, what is shared and what is trained, and a whole
run from a Hugging Face folder to an exported one."""

import contextlib
import gc
import io
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

import ppo
import sample
import train_pit
import train_reward
from conftest import needs, tiny_config, tiny_gpt, tiny_run, write_lines
from evaluation import verdicts
from faster import sampling as faster
from model import GPT, Linear, pad_rows, token_logprobs
from pretrained import export, llama
from pretrained.configure import load_config
from pretrained.lora import LoRA, adapted, frozen_trunk, merged
from pretrained.vocabulary import read_tokenizer
from report import judge as judges
from reward import RewardModel, score
from runtime import state
from runtime.checks import check_config
from runtime.config import Config, LoRASection, ModelSection, RewardSection
from runtime.files import load
from runtime.run import Run
from runtime.settings import UserError

ALL = LoRASection(rank=3, alpha=5.0)
PATHS = {"qkv": "attention.qkv", "out": "attention.out", "gate_up": "mlp.gate_up",
         "down": "mlp.down"}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2], [3, 3]]
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 7, 0, 1, 10, 3]])


def randomised(model, seed: int = 5):
    """Return the model, with adapters that do change something."""
    chance = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if ".lora." in name:
            tensor.data = 0.5 * torch.randn(tensor.shape, generator=chance)
    return model


def by_hand(trunk: dict, adapters: dict, scale: float) -> dict:
    """Return weights W + alpha / r B A of a trunk's and a checkpoint's content."""
    weights = {name: tensor.clone() for name, tensor in trunk.items()}
    for name, a in adapters.items():
        if name.endswith(".lora.a"):
            b = adapters[name[:-1] + "b"]
            weights[name.replace("lora.a", "weight")] += scale * torch.einsum("or,ri->oi", b, a)
    return weights


# ------------------------------------------------------------------------------------ arithmetic


def test_at_first_an_adapted_model_is_its_trunk():
    trunk = tiny_gpt()
    plain = trunk(TOKENS)
    model = adapted(trunk, ALL)
    assert torch.equal(model(TOKENS), plain)
    assert torch.equal(model.logits(plain), trunk.logits(plain))
    assert all(module.a.std() > 0.1 for module in model.modules() if isinstance(module, LoRA))


@pytest.mark.parametrize("tied, linears", [(True, list(PATHS)), (False, ["qkv", "down"])])
def test_an_adapted_model_is_a_plain_one_with_the_changed_weights(tied, linears):
    trunk = tiny_gpt(tied=tied)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    model = randomised(adapted(trunk, LoRASection(3, 5.0, linears)))
    expected = by_hand(before, model.state_dict(), 5 / 3)
    for weights in (expected, merged(model)):
        plain = tiny_gpt(seed=9, tied=tied)
        plain.load_state_dict(weights)
        logits = plain.logits(plain(TOKENS))
        torch.testing.assert_close(model.logits(model(TOKENS)), logits, atol=1e-5, rtol=1e-4)
    assert (logits - trunk.logits(trunk(TOKENS))).abs().max() > 0.1
    changed = {name for name, tensor in merged(model).items() if not torch.equal(
        tensor, before[name])}
    assert changed == {f"blocks.{i}.{PATHS[name]}.weight" for i in (0, 1) for name in linears}
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


# --------------------------------------------------------------------------- shared and trained


def test_models_share_a_frozen_trunk_and_have_adapters_of_their_own():
    trunk = tiny_gpt()
    one, other = adapted(trunk, ALL), adapted(trunk, ALL)
    for model in (one, other):
        named = dict(model.named_parameters(remove_duplicate=False))
        for name, tensor in trunk.named_parameters(remove_duplicate=False):
            assert named.pop(name) is tensor and not tensor.requires_grad
        assert model.rotary is trunk.rotary
        assert len(named) == 2 * 4 * 2 and all(p.requires_grad for p in named.values())
        assert {name.rpartition(".lora.")[0] for name in named} == {
            f"blocks.{i}.{path}" for i in (0, 1) for path in PATHS.values()}
        up = model.blocks[0].mlp.gate_up.lora  # gate and up are one matrix: they have one A
        assert up.a.shape == (3, 16) and up.b.shape == (48, 3)
    assert not {id(p) for p in one.parameters() if p.requires_grad} & {
        id(p) for p in other.parameters()}
    randomised(one)
    assert torch.equal(other(TOKENS), trunk(TOKENS)) and not torch.equal(one(TOKENS), trunk(TOKENS))
    assert all(module.lora is None for module in trunk.modules() if isinstance(module, Linear))


@pytest.mark.parametrize("kind", ["policy", "reward model", "critic"])
def test_a_step_changes_adapters_and_heads_and_nothing_in_the_trunk(kind):
    trunk, rows = tiny_gpt(), pad_rows(PROMPTS, [[2, 5], [1, 1, 1], [4], [9, 8]])
    before = [p.clone() for p in trunk.parameters()]
    inner = randomised(adapted(trunk, ALL))
    model, loss_of = {
        "policy": (inner, lambda model: token_logprobs(model, rows).sum()),
        "reward model": (RewardModel(inner, RewardSection(pool="last")),
                         lambda model: sum(part.square().sum() for part in model(rows))),
        "critic": (ppo.Critic(inner), lambda model: (model(rows) - 1).square().sum())}[kind]
    if kind == "critic":
        model.head.weight.data.normal_()
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name: p.clone() for name, p in own.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, fused=True)
    loss_of(model).backward()
    optimizer.step()
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(trunk.parameters(), before))
    assert all(p.grad.abs().max() > 0 and not torch.equal(p, kept[name])
               for name, p in own.items())


def test_what_is_kept_of_a_model_leaves_out_the_trunk_and_comes_back():
    trunk = tiny_gpt()
    one = randomised(RewardModel(adapted(trunk, ALL), RewardSection(pool="last")))
    content = state.weights_of(one)
    assert {name for name in content if ".lora." not in name} == {"head.weight", "head.bias"}
    assert len(content) == 2 + 16 and not state.frozen(tiny_gpt())
    assert len(state.weights_of(tiny_gpt())) == len(tiny_gpt().state_dict())
    other = RewardModel(adapted(trunk, ALL), RewardSection(pool="last"))
    rows = pad_rows(PROMPTS, [[2, 5], [1, 1, 1], [4], [9, 8]])
    assert not torch.equal(score(other, rows), score(one, rows))
    assert torch.equal(score(state.load_weights(other, content), rows), score(one, rows))
    missing = {name: tensor for name, tensor in content.items() if "blocks.1." not in name}
    narrow = adapted(tiny_gpt(), LoRASection(rank=2))
    for wrong in (missing, content | {"more": torch.ones(1)}, {}, {
            f"trunk.{name}": tensor for name, tensor in state.weights_of(narrow).items()}):
        with pytest.raises(RuntimeError):
            state.load_weights(other, wrong)
    assert all(p.equal(q) for p, q in zip(trunk.parameters(), tiny_gpt().parameters()))


# -------------------------------------------------------------------------------------- sampling


def test_sampling_does_not_forget_the_adapters():
    model = randomised(adapted(tiny_gpt(seed=3), ALL))
    found, plain = (faster.sample(one, PROMPTS, torch.zeros(4, 12), 0, -1)[0].responses()
                    for one in (model, tiny_gpt(seed=3)))
    assert len({tuple(row) for row in found}) == 4 and found != plain


def test_under_bfloat16_the_trunk_is_kept_so_and_adapters_are_not(source, tmp_path):
    config = load_config(source.config, [f"--run.dir={tmp_path}", "--run.amp=bf16"])
    run, data = Run(config), SimpleNamespace(vocab=source.model.embedding.num_embeddings)
    run.lock.close()
    data.trunk = frozen_trunk(run, GPT(config.model, data.vocab))
    model, plain = (randomised(adapted(trunk, config.lora)) for trunk in (data.trunk, source.model))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(p.dtype == (torch.float32 if "norm" in name else torch.bfloat16)
               for name, p in data.trunk.named_parameters())
    assert data.trunk.head.weight is data.trunk.embedding.weight
    halves = {name: tensor.float() for name, tensor in data.trunk.state_dict().items()}
    expected = by_hand(halves, model.state_dict(), 6 / 2)
    with run.precision():
        torch.testing.assert_close(merged(model), expected, atol=1e-6, rtol=1e-6)
        uniforms = torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
        rows = faster.sample(model, PROMPTS, uniforms, 1.0, -1)[0]
        logp = token_logprobs(model, rows)
        logp.sum().backward()
    assert [len(row) for row in rows.responses()] == [9] * 4 and rows.tokens.max() < data.vocab
    assert 0 < (logp - token_logprobs(plain, rows)).abs().max() < 0.3
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_under_bfloat16_an_embedding_of_its_own_is_kept_so_too(monkeypatch, tmp_path):
    run, gpt = tiny_run(tmp_path, run__amp="bf16"), tiny_gpt(tied=False)
    assert gpt.embedding.weight is not gpt.head.weight
    monkeypatch.setattr(llama, "read_weights", lambda *_: gpt.state_dict())
    assert frozen_trunk(run, tiny_gpt(seed=3, tied=False)).embedding.weight.dtype == torch.bfloat16


def test_the_judges_head_has_a_seed_of_its_own(monkeypatch):
    seeds, config = [], Config()
    config.data.files, config.run.seed = ["a.jsonl"], 5
    run = SimpleNamespace(config=config, stage=lambda name, inputs, make: make(),
                          placed=lambda model, weights: weights)
    monkeypatch.setattr(judges, "new_reward_model", lambda *_: None)
    monkeypatch.setattr(judges, "train_reward_model", lambda *given: seeds.append(given[-1]) or {
        "model": "weights"})
    models = SimpleNamespace(policies={"M_P^SFT": None})
    assert judges.judge_of(run, SimpleNamespace(folds={"rl": None}), models) == "weights"
    assert seeds == [6]


# ----------------------------------------------------------------------------------- a whole run


STAGES = ("sft", "pit_sft", "rp", "rpit", "judge", "rlhf", "stage0", "stage1")
CONFIG = """
[run]
device = "cpu"
save_every = 0.0
log_every = 1
[data]
valid = 4
test = 4
max_prompt = 16
max_response = 8
[lora]
rank = 2
alpha = 6.0
[refine]
feedback = "<|user|>{x}<|draft|>{y_ref}<|better|>"
rewrite = "<|user|>{x}<|draft|>{y_ref}<|user|>{feedback}<|better|>"
[ppo]
batch = 4
minibatches = 1
critic_warmup = 1
[eval]
prompts = 4
iterations = 2
best_of = 2
examples = 2
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizer):
    """Make a tiny Hugging Face folder, the model in it, and a config that starts from it."""
    folder = tmp_path_factory.mktemp("lora")
    model = tiny_gpt(tokenizer.vocab, seed=7, layers=1, context=64)
    (folder / "model").mkdir()
    shutil.copyfile(tokenizer.path, folder / "model" / "tokenizer.model")
    llama.write_json(folder / "model" / "config.json", llama.their_config(
        model.config, tokenizer.vocab, -1, tokenizer.eos, 64))
    torch.save(llama.their_weights(merged(model), model.config),
               folder / "model" / "pytorch_model.bin")
    prompts = [f"tea and {i}" for i in range(40)]
    pairs = write_lines(folder / "pairs.jsonl", [
        {"prompt": x, "chosen": f"Sure! {x[8:]}", "rejected": f"{x[8:]} in all"} for x in prompts])
    text = CONFIG.replace("[data]", f"[data]\nfiles = ['{pairs}']")
    text += f"[model]\ninit_from = '{folder / 'model'}'\ncontext = 64\n"
    text += "".join(f"[{fit}]\nsteps = 2\nbatch = 4\n" + "lr = 0.1\nwarmup = 0\n" * far
                    for fit, far in zip(STAGES, (True, True, False, False, False)))
    text += "".join(f"[{stage}]\niterations = 2\n" for stage in STAGES[5:])
    (folder / "c.toml").write_text(text)
    return SimpleNamespace(folder=folder / "model", model=model, config=str(folder / "c.toml"),
                           prompts=prompts)


def call(main, source, runs, *arguments) -> str:
    """Return what a script prints, run in this process."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["script", "--config", source.config, f"--run.dir={runs}",
                                    *map(str, arguments)])
        main()
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """Return the folder of a finished run, and the pairs that its supervised trainings took."""
    folder, pairs = tmp_path_factory.mktemp("runs"), {}  # prompts, by the name of the training

    def train(run, data, model, training, real=train_reward.train):
        pairs[training.name] = set(map(tuple, training.fold.x))
        return real(run, data, model, training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_reward, "train", train)
        call(train_pit.main, source, folder)
    return folder, pairs


@pytest.fixture
def runs(trained):
    return trained[0]


def test_checkpoints_hold_adapters_and_heads_only(runs, source):
    folder = runs / "synthetic"
    assert {path.stem for path in folder.glob("*.pt")} == {"data", *STAGES}
    for stage in STAGES:
        content = load(folder / f"{stage}.pt")
        for part in ("model", "critic") if "critic" in content else ("model",):
            heads = {name for name in content[part] if ".lora." not in name}
            whole = stage in ("rp", "rpit", "judge") or part == "critic"
            assert heads == ({"head.weight", "head.bias"} if whole else set())
            assert len(content[part]) - len(heads) == 8


def test_each_model_starts_from_the_adapters_of_the_one_before(runs):
    """Note that only M_P^SFT's and M_PIT^SFT's trainings go far here."""
    def adapters(stage, part="model"):
        content = load(runs / "synthetic" / f"{stage}.pt")[part]
        return torch.cat([t.flatten() for name, t in content.items() if ".lora." in name])
    for stage, part, before in (
            ("rp", "model", "sft"), ("rpit", "model", "pit_sft"), ("judge", "model", "sft"),
            ("rlhf", "model", "sft"), ("rlhf", "critic", "rp"), ("stage0", "model", "pit_sft"),
            ("stage0", "critic", "rpit"), ("stage1", "model", "stage0")):
        assert 0 < (adapters(stage, part) - adapters(before)).abs().max() < 0.02
    assert (adapters("sft") - adapters("pit_sft")).abs().max() > 0.05


def test_the_report_has_the_held_out_judge_and_what_it_compares(trained):
    runs, pairs = trained
    assert pairs["sft"] == pairs["pit_sft"] and pairs["rp"] == pairs["rpit"]
    assert len(pairs["judge"]) > 9 and not pairs["judge"] & (pairs["sft"] | pairs["rp"])
    report = json.loads((runs / "synthetic" / "report.json").read_text())
    assert report["judge"] == "a reward model held out from all training"
    found = {(row["system"], row["against"], row["temperature"]) for row in report["rows"]}
    for t in (1.0, 0.5):
        assert {("pretrained", "M_P^RL", t), ("Self-Refine", "M_P^RL", t),
                ("PIT stage 1", "Self-Refine", t)} <= found
    assert all(row["gold"] is None and len(row["equal_length"]) == 3 for row in report["rows"])
    assert report["reward"]["judge of this report"]["pairs"] == 4
    lines = (runs / "synthetic" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 6 and all(json.loads(line)["x"] for line in lines)


def test_weights_of_which_a_part_is_missing_are_named(tmp_path):
    (tmp_path / "pytorch_model-1.bin").write_bytes(b"")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {
        name: f"pytorch_model-{name}.bin" for name in "12"}}))
    with pytest.raises(UserError, match="model-2.bin: cannot read the weights .No such file"):
        llama.checksum(str(tmp_path))


def test_adapters_are_not_put_onto_other_weights(runs, source):
    path = source.folder / "pytorch_model.bin"
    whole = path.read_bytes()
    weights = torch.load(path)
    weights["model.norm.weight"] += 0.5
    torch.save(weights, path)
    llama.checksum.cache_clear()  # as in another process
    try:
        with pytest.raises(UserError, match=r"sft.pt was made with other values \(or none\) of "
                                            "lora.trunk; take its own"):
            call(sample.main, source, runs, "--prompt=tea and 1")
    finally:
        path.write_bytes(whole)
        llama.checksum.cache_clear()
    assert "y_1" in call(sample.main, source, runs, "--prompt=tea and 1", "--iters=1")


class CutOff(BaseException):
    """As a kill: nothing is saved on the way out."""


def test_a_run_that_is_cut_off_twice_ends_as_one_that_is_not(runs, source, tmp_path, monkeypatch):
    def cut(module, last: int):
        """Run until this step of the optimisers in a module is asked for."""
        calls = iter(range(1, last))
        with monkeypatch.context() as patch:
            patch.setattr(module, "optimizer_step", lambda *a, real=module.optimizer_step: (
                real(*a) if next(calls, 0) else (_ for _ in ()).throw(CutOff)))
            with pytest.raises(CutOff):
                call(train_pit.main, source, tmp_path)
        gc.collect()  # with what was cut off its lock goes
    folder = tmp_path / "synthetic"
    cut(train_reward, 8)   # in the last step of R_PIT
    content = load(folder / "rpit.part.pt")
    assert content["step"] == 1 and len(content["state"]["model"]) == 8 + 2
    assert len(content["state"]["optimizer"]) == 8 + 2
    cut(ppo, 9)            # critic; policy, critic; the same of stage 0; critic; policy, critic
    assert load(folder / "stage1.part.pt")["step"] == 1
    call(train_pit.main, source, tmp_path)
    for stage in STAGES:
        one, other = (load(where / "synthetic" / f"{stage}.pt")["model"]
                      for where in (runs, tmp_path))
        assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    one, other = (json.loads((where / "synthetic" / "report.json").read_text())
                  for where in (runs, tmp_path))
    assert one["rows"] == other["rows"] and one["responses"] == other["responses"]


def judge(runs, path) -> str:
    """Return what `python -m evaluation.verdicts` prints of the finished run."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["verdicts", str(runs / "synthetic" / "report.json"), str(path)])
        verdicts.main()
    return printed.getvalue()


def test_pairs_for_a_judge_outside_and_its_verdicts(runs, source, tmp_path):
    path = tmp_path / "pairs.json"
    assert f"written: 24 pairs in {path}" in judge(runs, path)
    entries = json.loads(path.read_text())  # three pairs of systems, 4 prompts, 2 temperatures
    systems = {"PIT stage 1", "Self-Refine", "M_P^RL"}
    assert {entry[f"generator_{k}"] for entry in entries for k in (1, 2)} == systems
    assert {entry["instruction"] for entry in entries} <= {*source.prompts}
    with pytest.raises(UserError, match="holds no verdicts yet"):
        judge(runs, path)
    with pytest.raises(UserError, match="there is no folder .*; make it first"):
        judge(runs, tmp_path / "nowhere" / "pairs.json")
    for content in (None, b"{", b"[]", b"{}"):
        if content is not None:
            (tmp_path / "synthetic").mkdir(exist_ok=True)
            (tmp_path / "synthetic" / "report.json").write_bytes(content)
        with pytest.raises(UserError, match="report.json: no report.json of a run"):
            judge(tmp_path, tmp_path / "other.json")
    for entry in entries:  # PIT is best, Self-Refine the worst
        entry["preference"] = 1 + ("PIT" in entry["generator_2"] or "Self" in entry["generator_1"])
    path.write_text(json.dumps(entries))
    table = judge(runs, path).splitlines()
    for t in (1.0, 0.5):
        for systems, figures in (("PIT stage 1 | M_P^RL", "100.0 | 0.0 | 0.0 | +100.0"),
                                 ("Self-Refine | M_P^RL", "0.0 | 0.0 | 100.0 | -100.0"),
                                 ("Self-Refine | PIT stage 1", "0.0 | 0.0 | 100.0 | -100.0")):
            row, = (line for line in table if line.startswith(f"| T = {t} | {systems} | "))
            assert row.startswith(f"| T = {t} | {systems} | 4 | {figures} [")


@needs("safetensors")
@pytest.mark.parametrize("name, stage", [("PIT stage 1", "stage1"), ("M_P^RL", "rlhf"),
                                         ("pretrained", None)])
def test_an_exported_folder_holds_the_whole_policy(runs, source, tmp_path, tokenizer, name, stage):
    out = tmp_path / "out"
    arguments = [f"--to={out}", f"--model={name}"][:1 + (name != "PIT stage 1")]
    assert f"written: {name} in {out}" in call(export.main, source, runs, *arguments)
    found = llama.described(str(out), 64)
    section = ModelSection(**found["model"] | {"context": 64})
    weights = llama.read_weights(str(out), section)
    adapters = load(runs / "synthetic" / f"{stage}.pt")["model"] if stage else {}
    expected = by_hand(source.model.state_dict(), adapters, 6 / 2)
    assert weights.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(weights[key], tensor, atol=1e-6, rtol=1e-5)
    GPT(section, section.vocab).load_state_dict(weights)
    pieces = tokenizer.pieces.serialized_model_proto()
    assert (out / "tokenizer.model").read_bytes() == pieces and found["tokenizer"]["eos"] == "</s>"
    assert json.loads((out / "templates.json").read_text())["pit"].startswith("<|user|>{x}")
    with pytest.raises(UserError, match="holds a model already"):
        call(export.main, source, runs, f"--to={out}")
    with pytest.raises(UserError, match="--model 'PIT stage 2': did you mean 'PIT stage 1'"):
        call(export.main, source, runs, f"--to={tmp_path}", "--model=PIT stage 2")


@needs("safetensors", "tokenizers")
def test_a_written_folder_says_what_ends_a_response(source, tmp_path):
    """Check both tokenizers, with and without a folder that lends its tokenizer_config."""
    import tokenizers
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces.add_special_tokens(["<|better|>"])
    pieces.save(str(tmp_path / "tokenizer.json"))
    for name, path in (("", tmp_path / "tokenizer.json"), ("", source.folder / "tokenizer.model"),
                       (str(source.folder), source.folder / "tokenizer.model")):
        out = tmp_path / f"out{bool(name)}{path.suffix}"
        config = load_config(source.config)
        config.model.init_from = name
        tokenizer = read_tokenizer(path, "<|better|>")
        llama.write_folder(out, merged(source.model), config, config.model.vocab, tokenizer)
        found = llama.described(str(out), 64)["tokenizer"]
        assert found == {"model": str(out / path.name), "eos": "<|better|>"}
        assert llama.read_json(out / "config.json")["eos_token_id"] == tokenizer.eos


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("fields, said", [
    ({}, "lora.rank adapts a trained model: name it in model.init_from"),
    ({"run__shard": True}, "run.shard = true is for full training"),
    ({"lora__linears": []}, "lora.linears must not be empty"),
    ({"lora__linears": ["qkv", "gateup"]}, "lora.linears: 'gateup'; did you mean 'gate_up'?"),
    ({"lora__alpha": 0.0}, "lora.alpha = 0.0 is out of range"),
    ({"lora__rank": -1}, "lora.rank = -1 is out of range")])
def test_adapters_that_cannot_be_are_refused(tmp_path, fields, said):
    whole = {"model__init_from": "folder"} if fields else {}
    config = tiny_config(tmp_path, **{"lora__rank": 2} | whole | fields)
    with pytest.raises(UserError, match=f"^test: {re.escape(said)}"):
        check_config(config, "test")
