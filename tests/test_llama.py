"""Llama- and Qwen-type checkpoints against transformers: logits, token ids, the way back; refusals.

transformers, tokenizers and safetensors are optional: tests that need them are skipped without.
"""

import gzip
import json
import math
import random
import shutil

import pytest
import sentencepiece
import torch

from conftest import ROOT, needs, tiny_gpt, tiny_run, write_lines
from corpus import bills
from corpus.tokens import encode_prompts
from data import load_data
from evaluation.show import prompt_text
from model import GPT
from pretrained import llama
from pretrained.configure import load_config
from pretrained.lora import adapted, merged
from pretrained.vocabulary import read_tokenizer
from runtime.config import Config, LoRASection, ModelSection
from runtime.settings import UserError

HH = ROOT.parent / "shared" / "data" / "hh-rlhf" / "helpful-base" / "test.jsonl.gz"
STORIES = ROOT.parent / "shared" / "weights" / "stories260K"
TOKENS = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(0))
LLAMA3 = {"factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # of 4 pairs one turns as before, one is between


def scrambled(model):
    """Set random weights, also of norms and adapters, that all matter to the logits."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        p.data = (torch.randn(p.shape) * p.shape[-1] ** -0.5 if p.dim() > 1 else
                  torch.rand(p.shape) - 0.5 if name.endswith("bias") else torch.rand(p.shape) + 0.5)
    return model


def read(path, context: int = 48) -> GPT:
    """Read the GPT of a checkpoint, as a run reads it."""
    model = ModelSection(context=context, **llama.described(str(path), context)["model"])
    weights = llama.read_weights(str(path), model)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    gpt = GPT(model, model.vocab)
    gpt.load_state_dict(weights)
    return gpt


def assert_equal_logits(ours: GPT, other):
    """Compare with `other`, which is ours too, or of transformers."""
    with torch.no_grad():
        wanted = other.logits(other(TOKENS)) if isinstance(other, GPT) else other(TOKENS).logits
        torch.testing.assert_close(ours.logits(ours(TOKENS)), wanted, atol=1e-4, rtol=0)


def their_weights(gpt: GPT) -> dict:
    return llama.their_weights(merged(gpt), gpt.config)


def write_folder(folder, gpt: GPT, fields=(), weights=None):
    """Write a folder that needs no extra: config.json with changed `fields` (...: without the
    field) and pytorch_model.bin."""
    config = llama.their_config(gpt.config, 61, -1, 1, 48) | dict(fields)
    (folder / "config.json").write_text(json.dumps(
        {key: value for key, value in config.items() if value is not ...}))
    torch.save(weights or their_weights(gpt), folder / "pytorch_model.bin")


def export(folder, gpt: GPT, tokenizer, config: Config | None = None):
    config = config or Config()
    config.model = gpt.config
    llama.write_folder(folder, merged(gpt), config, gpt.embedding.num_embeddings, tokenizer)
    return folder


def refusal(function, *arguments) -> str:
    """Return the one line that a call is refused with."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# ----------------------------------------------------------------------------------- what is read


@needs("transformers", "safetensors")
@pytest.mark.parametrize("stored", ["one file", "shards", "bin", "bin shards"])
@pytest.mark.parametrize("family, changes", [
    ("Llama", {}),
    ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("Llama", {"rope_theta": 500.0}),
    ("Llama", {"rope_theta": 1000.0, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}}),
    ("Llama", {"rms_norm_eps": 0.1, "head_dim": 12}),
    ("Mistral", {"num_key_value_heads": 1}),
    ("Qwen2", {}), ("Qwen2", {"tie_word_embeddings": True}),
    ("Qwen3", {"head_dim": 12}), ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
], ids=["grouped", "full tied", "theta", "llama3", "eps head_dim", "mistral", "qwen2", "qwen2 tied",
        "qwen3", "qwen3 tied"])
def test_logits_are_those_of_transformers(tmp_path, family, changes, stored):
    import transformers
    config = getattr(transformers, f"{family}Config")(**dict(
        vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=48) | changes)
    model = scrambled(getattr(transformers, f"{family}ForCausalLM")(config)).eval()
    model.save_pretrained(tmp_path, max_shard_size="9KB" if stored == "shards" else "1GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (stored == "shards")
    if "bin" in stored:
        (tmp_path / "model.safetensors").unlink()
        weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # in old files
        files = {"pytorch_model.bin": list(weights)} if stored == "bin" else {
            "pytorch_model-1.bin": list(weights)[::2], "pytorch_model-2.bin": list(weights)[1::2]}
        for name, keys in files.items():
            torch.save({key: weights[key] for key in keys}, tmp_path / name)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(
            {"weight_map": {key: name for name, keys in files.items() for key in keys}}))
    assert_equal_logits(read(tmp_path), model)


@pytest.mark.parametrize("fields", [
    {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 500.0}},
    {"rope_scaling": LLAMA3 | {"rope_type": "llama3"}, "rope_theta": 500.0},
    {"rope_scaling": LLAMA3 | {"type": "llama3"}, "rope_theta": 500.0}])
def test_the_rotation_is_read_as_old_and_new_versions_write_it(tmp_path, fields):
    absent = dict.fromkeys(("rope_parameters", "rope_scaling", "rope_theta"), ...)
    write_folder(tmp_path, tiny_gpt(61), absent | fields)
    found = llama.described(str(tmp_path), 48)["model"]
    assert (found["rope_theta"], found["rope_scaling"]) == (500.0, [8.0, 0.5, 4.0, 32.0])


def test_weights_in_bfloat16_are_read(tmp_path):
    gpt = tiny_gpt(61)
    for p in gpt.parameters():
        p.data = p.data.bfloat16().float()
    write_folder(tmp_path, gpt, weights={
        name: tensor.bfloat16() for name, tensor in their_weights(gpt).items()})
    assert_equal_logits(read(tmp_path), gpt)


@needs("safetensors")
@pytest.mark.parametrize("beside", [
    "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"])
def test_what_lies_beside_the_weights_is_left_alone(tmp_path, beside):
    from safetensors.torch import save_file
    gpt = tiny_gpt(61)
    write_folder(tmp_path, gpt, weights={"an older one": torch.zeros(1)})
    save_file(their_weights(gpt), tmp_path / "model.safetensors")
    if beside.endswith("json"):  # of .bin shards that were not downloaded
        (tmp_path / "pytorch_model.bin").unlink()
        (tmp_path / beside).write_text('{"weight_map": {"lm_head.weight": "pytorch_model-1.bin"}}')
    elif beside.startswith("consolidated"):  # Mistral's: the weights again, by other names
        save_file({"tok_embeddings.weight": torch.zeros(61, 16)}, tmp_path / beside)
    assert_equal_logits(read(tmp_path), gpt)


# ---------------------------------------------------------------------------------- the way back


@pytest.fixture(params=[
    {}, {"tied": False}, {"rope_scaling": [8.0, 0.5, 4.0, 32.0], "norm_eps": 0.1},
    {"head_width": 6, "rope_theta": 500.0}, {"lora": True}, {"lora": True, "tied": False},
    {"qkv_bias": True}, {"qkv_bias": True, "tied": False, "lora": True},
    {"qk_norm": True, "head_width": 6}, {"qk_norm": True, "tied": False, "lora": True}],
    ids=lambda changes: " ".join(changes) or "plain")
def exported(request, tmp_path, tokenizer):
    """Return a GPT, and the folder that it was written to."""
    gpt = tiny_gpt(tokenizer.vocab, **{k: v for k, v in request.param.items() if k != "lora"})
    gpt = scrambled(adapted(gpt, LoRASection(rank=3)) if "lora" in request.param else gpt)
    return gpt, export(tmp_path / "out", gpt, tokenizer)


@needs("safetensors")
def test_an_exported_folder_is_read_again(exported, tokenizer):
    gpt, folder = exported
    assert_equal_logits(read(folder), gpt)
    assert llama.described(str(folder), 48)["tokenizer"] == {
        "model": str(folder / "tokenizer.model"), "eos": "</s>"}
    assert f"{folder} reads at most 48" in refusal(llama.described, str(folder), 49)
    assert f"--to {folder}: holds a model already" in refusal(export, folder, gpt, tokenizer)


@needs("transformers", "safetensors")
def test_transformers_reads_an_exported_folder(exported):
    import transformers
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported[1])
    assert_equal_logits(exported[0], theirs)
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (None, 1)


@needs("safetensors")
def test_a_folder_that_holds_a_model_holds_all_of_it(tmp_path, tokenizer, monkeypatch):
    written = []
    monkeypatch.setattr(llama, "write_whole", lambda path, write: written.append(path.name))
    export(tmp_path / "out", tiny_gpt(tokenizer.vocab), tokenizer)
    assert {"model.safetensors", "templates.json"} < {*written} and written[-1] == "config.json"


# -------------------------------------------------------------------------------------- token ids


def texts() -> list[str]:
    """Make a thousand texts of what tokenizers trip over and, where it is there, of HH-RLHF."""
    rng = random.Random(0)
    parts = ("the cat", "Hello", " don't", " 3.14", "12345", "\n", "\n\n", "    ", "\t", " ", "...",
             "naïve", "e\u0301", "日本語", "привет", "😀", "👍🏽", "\u200b", "<|im_end|>",
             "<|bos|>", "_x1 = f(y)", "!?", " don’t", "<")
    made = ["".join(rng.choices(parts, k=rng.randrange(1, 12))) for _ in range(1000)]
    real = gzip.decompress(HH.read_bytes()).splitlines()[:1000] if HH.exists() else []
    return made + [json.loads(line)["chosen"] for line in real]


@pytest.fixture(scope="session")
def json_tokenizer(tmp_path_factory):
    """Train a byte-level BPE tokenizer.json: it starts texts with <|bos|>, cuts, pads them."""
    import tokenizers as library
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    made.train_from_iterator(texts()[:500], library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|im_end|>", "<|bos|>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
    made.post_processor = library.processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    made.enable_truncation(8)
    made.enable_padding(length=4)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    made.save(str(path))
    return read_tokenizer(path, "<|im_end|>")


@needs("transformers", "tokenizers")
def test_ids_of_a_tokenizer_json_are_those_of_transformers(json_tokenizer):
    import transformers
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(json_tokenizer.path))
    given, whole = texts(), {"add_special_tokens": False}
    assert [json_tokenizer.fixed(text) for text in given] == theirs(given, **whole)["input_ids"]
    for spaced in (False, True):
        wanted = theirs([" " * spaced + text for text in given], **whole, split_special_tokens=True)
        assert json_tokenizer.encode(given, spaced) == wanted["input_ids"]


@needs("tokenizers")
def test_a_tokenizer_json_has_its_begin_and_its_end(json_tokenizer, tmp_path):
    assert (json_tokenizer.bos, json_tokenizer.eos, json_tokenizer.vocab) == (1, 0, 400)
    hello, = json_tokenizer.encode(["Hello, the cat"])
    assert 1 not in hello and json_tokenizer.decode(hello + [0] + hello) == "Hello, the cat"
    plain = json.loads(json_tokenizer.path.read_text()) | {"post_processor": None}
    (tmp_path / "t").write_text(json.dumps(plain))
    assert read_tokenizer(tmp_path / "t", "<|im_end|>").bos == -1  # it is told by its content
    assert read_tokenizer(json_tokenizer.path, "<|bos|>").bos == -1  # an end is no beginning


@pytest.mark.parametrize("kind, marker", [
    pytest.param("json_tokenizer", "<|im_end|>", marks=needs("tokenizers")),
    ("tokenizer", "</s>"), ("tokenizer", "<|user|>")])
def test_only_templates_have_markers(request, kind, marker):
    ours = request.getfixturevalue(kind)
    for _ in range(2):  # `encode` leaves no trace
        number, = ours.fixed(marker)
        assert ours.fixed(f"Hello{marker}\n").count(number) == 1
        assert not any(number in ids for ids in ours.encode([marker, f"Hello{marker}\n"]))


@needs("transformers", "tokenizers", "safetensors", "google.protobuf")
@pytest.mark.parametrize("kind", ["tokenizer", "json_tokenizer", "of a folder"])
def test_an_exported_tokenizer_has_equal_ids(request, tmp_path, kind):
    import transformers
    source = tmp_path / "source"
    ours = request.getfixturevalue("tokenizer" if kind == "tokenizer" else "json_tokenizer")
    gpt = tiny_gpt(ours.vocab, context=40)
    if kind == "of a folder":  # which says that another token is the end
        source.mkdir()
        write_folder(source, gpt)
        transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(ours.path), bos_token="<|bos|>", eos_token="<|bos|>",
            chat_template="{{ messages }}", model_max_length=48).save_pretrained(source)
        gpt.config.init_from = str(source)
    folder = export(tmp_path / "out", gpt, ours)
    assert llama.describe_folder(folder)[1] == (48 if kind == "of a folder" else 40)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    given = texts() + [pair["prompt"] for pair in bills.make_pairs(1000, 2, "first")]
    if kind == "tokenizer":  # without byte_fallback: transformers drops what it cannot spell
        given = [text for text, ids in zip(given, ours.encode(given)) if 0 not in ids]
    assert len(given) >= 1000
    lead = " " * (kind == "tokenizer")  # ours puts it there
    ids = ours.encode(given)
    assert ids == theirs([lead + text for text in given], add_special_tokens=False,
                         split_special_tokens=True)["input_ids"]
    assert theirs.decode(ids[-1]).strip() == given[-1]
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.eos, 1 if ours.bos == 1 else None)
    assert theirs("tea")["input_ids"] == [1] * (ours.bos == 1) + ours.fixed("tea")
    assert (theirs.chat_template, theirs.model_max_length == 48) == (
        ("{{ messages }}", True) if kind == "of a folder" else (None, False))


@needs("transformers", "safetensors", "google.protobuf")
def test_exported_templates_make_the_prompts_of_the_run(bills_run, tmp_path):
    import transformers
    run, data = bills_run
    folder = export(tmp_path / "out", GPT(run.config.model, data.vocab), data.tokenizer, run.config)
    templates = json.loads((folder / "templates.json").read_text())
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    x, y_ref = "How much is tea?", "It is 3 in all."
    turn, encoded = templates["user"].replace("{x}", x), data.tokenizer.encode([y_ref])[0]
    for name, ids in (("policy", data.policy_prompt(data.prompt(x))),
                      ("pit", data.pit_prompt(data.prompt(x), encoded))):
        text = templates[name].replace("{x}", turn).replace("{y_ref}", y_ref)
        assert theirs(text)["input_ids"] == ids


LLAMA2 = {"user": "[INST] {x} [/INST]", "assistant": " {x} </s><s>", "policy": "{x} ",
          "pit": "{x} {y_ref} </s><s>[INST] Better? [/INST] "}
TURNS = [("user", "How much is tea?"), ("assistant", "It is 5 in all."), ("user", "And a hat?"),
         ("assistant", "8."), ("user", "And both of them?")]


@needs("transformers", "safetensors", "google.protobuf")
@pytest.mark.parametrize("form", ["llama 2", "hh.toml", "tinyllama-hh.toml"])
@pytest.mark.parametrize("whose", ["ours", "a Llama's"])
def test_conversations_are_read_as_transformers_reads_them(tmp_path, form, whose):
    """Check that what stands first in a sequence has the tokenizer's space before it."""
    import transformers
    pairs = list(bills.make_pairs(60, 5, "first"))
    if whose == "a Llama's":
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(p["chosen"] for p in pairs), model_prefix=str(tmp_path / "t"),
            vocab_size=330, model_type="bpe", byte_fallback=True, minloglevel=2, num_threads=1,
            normalization_rule_name="identity", remove_extra_whitespaces=False)
    template = LLAMA2 if form == "llama 2" else {
        key: text for key, text in vars(load_config(str(ROOT / "configs" / form), [
            "--model.init_from=", "--lora.rank=0"]).template).items() if key != "system"}
    talk = {"prompt": [{"role": role, "content": text} for role, text in TURNS],
            "chosen": [{"role": "assistant", "content": "13."}],
            "rejected": [{"role": "assistant", "content": "12."}]}
    run = tiny_run(
        tmp_path, data__files=[write_lines(tmp_path / "a.jsonl", [*pairs, talk])],
        data__valid=2, data__test=2, data__max_prompt=400, data__max_response=150,
        model__context=900, tokenizer__vocab=330, tokenizer__byte_fallback=True,
        tokenizer__model="" if whose == "ours" else str(tmp_path / "t.model"),
        **{f"template__{key}": text for key, text in template.items()})
    data = load_data(run)
    run.config.model.vocab = data.vocab
    folder = export(tmp_path / "out", GPT(run.config.model, data.vocab), data.tokenizer, run.config)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    templates, y_ref = json.loads((folder / "templates.json").read_text()), "It is 3 in all."

    def left(turns, limit=10 ** 6):
        return encode_prompts([turns], data.turns, data.opening, data.tokenizer, limit)[0][0]

    for turns in (TURNS, TURNS[2:], TURNS[4:], [("user", "How much?")]):
        x = left(turns) if len(turns) == 1 else left(TURNS, len(left(turns)))
        assert x == left(turns)
        turns = "".join(templates[role].replace("{x}", text) for role, text in turns)
        encoded = data.tokenizer.encode([y_ref], data.pit_prompt.spaced["{y_ref}"])[0]
        for name, ids in (("policy", data.policy_prompt(x)), ("pit", data.pit_prompt(x, encoded))):
            text = templates[name].replace("{x}", turns).replace("{y_ref}", y_ref)
            assert theirs(text)["input_ids"] == ids, text
    assert max((x for fold in data.folds.values() for x in fold.x), key=len) == left(TURNS)
    assert left([("user", "How much?")]) == data.prompt("How much?")
    assert prompt_text(data, data.prompt("How much?")) == "How much?"


@needs("transformers", "safetensors", "google.protobuf")
@pytest.mark.skipif(not STORIES.exists(), reason="stories260K is not there")
def test_ids_of_stories260k_are_those_of_transformers(tmp_path):
    import transformers
    shutil.copy(STORIES / "tok512.model", tmp_path / "tokenizer.model")
    ours = read_tokenizer(tmp_path / "tokenizer.model", "")
    theirs = transformers.AutoTokenizer.from_pretrained(
        export(tmp_path / "out", tiny_gpt(ours.vocab), ours))
    given = [" ".join(text.encode("ascii", "ignore").decode().split()) for text in texts()]
    assert ours.encode(given) == theirs(given, add_special_tokens=False,
                                        split_special_tokens=True)["input_ids"]
    assert theirs("Hello")["input_ids"] == [ours.bos, *ours.encode(["Hello"])[0]]


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("fields, said", [
    ({"architectures": ["GPT2LMHeadModel"]}, "architectures = ['GPT2LMHeadModel']; only one of Ll"),
    ({"architectures": ...}, "architectures = None; only one of Ll"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'silu'"),
    ({"attention_bias": True}, "attention_bias = True is not supported, only False"),
    ({"mlp_bias": True}, "mlp_bias = True is not supported, only False"),
    ({"use_sliding_window": True}, "use_sliding_window = True is not supported, only False"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported, only 1.0"),
    ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4} is not supported"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not supported"),
    ({"rope_parameters": ..., "rope_scaling": {"type": "linear"}}, "rope_type = 'linear' is not"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "rope_theta or rope scaling 'llama3' lacks"),
    ({"rope_parameters": {"rope_theta": "a"}}, "rope_theta or rope scaling 'llama3' lacks"),
    ({"rope_parameters": {"rope_theta": -1}}, "rope_theta and rope scaling take positive numbers"),
    ({"rope_parameters": ..., "rope_scaling": "linear"}, "rope_scaling = 'linear' is no object"),
    ({"architectures": 5}, "architectures = 5; only one of Ll"),
    ({"num_hidden_layers": 2.0}, "field 'num_hidden_layers' is missing or no positive number"),
    ({"rms_norm_eps": math.inf}, "field 'rms_norm_eps' is missing or no positive number"),
    *(({field: missing}, f"field '{field}' is missing") for missing in (..., None) for field in (
        "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size",
        "vocab_size", "rms_norm_eps", "max_position_embeddings")),
])
def test_a_model_that_is_not_ours_is_refused(tmp_path, fields, said):
    write_folder(tmp_path, tiny_gpt(61), fields)
    assert f"{tmp_path / 'config.json'}: {said}" in refusal(llama.described, str(tmp_path), 48)


@pytest.mark.parametrize("settings, said", [
    ({"added_tokens_decoder": {"a": {}}}, "added_tokens_decoder has a key that is no token id"),
    ({"added_tokens_decoder": 5}, "added_tokens_decoder has a key that is no token id"),
    ({"eos_token": 5}, "eos_token is no text"),
    ({"eos_token": {"content": 5}}, "eos_token is no text")])
def test_a_tokenizer_config_that_is_none_is_refused(tmp_path, settings, said):
    write_folder(tmp_path, tiny_gpt(61), {})
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert f"{tmp_path / 'tokenizer_config.json'}: {said}" in refusal(
        llama.described, str(tmp_path), 48)


@pytest.mark.parametrize("content, said", [
    (None, " is missing"), (b"{", ": cannot read it"), (b"\xff", ": cannot read it"),
    (b"[1]", ": expected a JSON object")])
def test_a_config_json_that_is_none_is_refused(tmp_path, content, said):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    assert f"{path}{said}" in refusal(llama.described, str(tmp_path), 48)
    assert "there is no such folder" in refusal(llama.described, str(path / "none"), 48)


@pytest.mark.parametrize("field", ["max_position_embeddings", "sliding_window"])
def test_a_context_that_a_model_cannot_read_is_refused(tmp_path, field):
    write_folder(tmp_path, tiny_gpt(61), {field: 20})
    assert llama.described(str(tmp_path), 20)
    line = refusal(llama.described, str(tmp_path), 21)
    assert f"model.context = 21, but {tmp_path} reads at most 20 tokens" in line


def test_a_window_that_is_not_used_shortens_nothing(tmp_path):
    """Check it on what Qwen2.5's config.json has."""
    write_folder(tmp_path, tiny_gpt(61, qkv_bias=True), {
        "use_sliding_window": False, "sliding_window": 16, "max_window_layers": 21})
    assert llama.described(str(tmp_path), 48)["model"]["qkv_bias"]
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_type"] == "qwen2" and "use_sliding_window" in llama.their_config(
        tiny_gpt(61, qk_norm=True).config, 61, -1, 1, 48)


def test_biases_and_norms_at_once_are_not_exported():
    model = tiny_gpt(61, qkv_bias=True, qk_norm=True).config
    assert "both model.qkv_bias and model.qk_norm" in refusal(
        llama.their_config, model, 61, -1, 1, 48)


def test_a_config_that_a_checkpoint_contradicts_is_refused(tmp_path):
    write_folder(tmp_path, tiny_gpt(61))
    path, source = tmp_path / "c.toml", [f"--model.init_from={tmp_path}", "--model.context=48"]
    path.write_text("")
    line = refusal(load_config, str(path), [*source, "--model.layers=1"])
    assert f"model.layers = 1, but {tmp_path} has 2" in line
    assert f"{tmp_path}: no tokenizer.model or" in refusal(load_config, str(path), source)


@pytest.mark.parametrize("name, tensor, said", [
    ("model.norm.weight", None, "is missing; expected (16,)"),
    ("model.layers.1.mlp.up_proj.weight", torch.ones(24, 9), "has shape (24, 9); expected (24, 1"),
    ("model.embed_tokens.weight", torch.ones(60, 16), "has shape (60, 16); expected (61, 16)"),
    ("model.layers.0.self_attn.q_proj.bias", torch.ones(16), "is none of this model's"),
    ("model.layers.2.input_layernorm.weight", torch.ones(16), "is none of this model's"),
])
def test_weights_of_another_model_are_refused(tmp_path, name, tensor, said):
    weights = their_weights(tiny_gpt(61)) | {name: tensor}
    write_folder(tmp_path, tiny_gpt(61), weights={
        key: tensor for key, tensor in weights.items() if tensor is not None})
    assert refusal(read, tmp_path).startswith(f"{tmp_path}: tensor {name} {said}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", pytest.param("model.safetensors",
                                                                    marks=needs("safetensors"))])
@pytest.mark.parametrize("left", [0, 5, 1000, -1])
def test_damaged_weights_are_refused(tmp_path, name, left):
    write_folder(tmp_path, tiny_gpt(61))
    path = tmp_path / name
    if name == "model.safetensors":
        from safetensors.torch import save_file
        save_file(their_weights(tiny_gpt(61)), path)
        (tmp_path / "pytorch_model.bin").unlink()
    path.write_bytes(path.read_bytes()[:left])
    assert f"{path}: cannot read the weights (" in refusal(read, tmp_path)
    path.unlink()
    assert f"{tmp_path}: neither model.safetensors nor" in refusal(read, tmp_path)


@pytest.mark.parametrize("kind", ["tokenizer", pytest.param("json_tokenizer",
                                                            marks=needs("tokenizers"))])
def test_an_end_that_the_tokenizer_lacks_is_refused(request, kind):
    path = request.getfixturevalue(kind).path
    line = refusal(read_tokenizer, path, "<|none|>")
    assert str(path) in line and "<|none|>" in line and "tokenizer.eos" in line


def test_more_pieces_than_the_embedding_has_rows_are_refused(tmp_path, tokenizer):
    run = tiny_run(tmp_path, tokenizer__model=str(tokenizer.path), model__vocab=100)
    assert "tokenizer.model has 160 pieces, but the embedding of model.init_from 100 rows" in (
        refusal(load_data, run))
