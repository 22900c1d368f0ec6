"""Llama- and Qwen-type checkpoints: read and written as Hugging Face folders.

Ours has queries, keys and values in one matrix, gate and up in another, and turns the pairs
(2i, 2i + 1) of a head, as Meta does; Hugging Face turns (i, i + C/2), so the rows of its
queries and keys, their biases and the weights of their norms are put in our order when read, and
back when written. Everything is refused that these architectures do not have, by the name of the
field.
"""

import functools
import json
import math
import re
import shutil
from pathlib import Path

import torch

from pretrained.vocabulary import Tokenizer
from runtime.files import checksum as checksum_of_file
from runtime.files import write_whole
from runtime.settings import UserError, reason_of

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
TOKENIZERS = ("tokenizer.model", "tokenizer.json")  # the first that is there is taken
CHAT = "chat_template.jinja"  # copied beside the tokenizer
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ONLY = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
        "partial_rotary_factor": (1.0,), "quantization_config": (None,),
        "use_sliding_window": (False,)}  # the values that we have
BLOCK = {"attention_norm.weight": "input_layernorm", "attention.out.weight": "self_attn.o_proj",
         "mlp_norm.weight": "post_attention_layernorm", "mlp.down.weight": "mlp.down_proj"}
ROTATED = re.compile(r"[qk]_(proj|norm)")  # what Hugging Face has in another order


def read_json(path: Path) -> dict:
    """Read a JSON object from a file, {} if there is none. Raises UserError where it is no JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read it: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def settle(config) -> None:
    """Put into [model] and [tokenizer] what the checkpoint model.init_from decides.

    Raises UserError for a checkpoint that cannot be used, and for fields that say otherwise.
    """
    source, defaults = config.model.init_from, type(config.model)()
    found = described(source, config.model.context)
    for key, value in found["model"].items():
        said = getattr(config.model, key)
        if said not in (value, getattr(defaults, key)):
            raise UserError(f"model.{key} = {said}, but {source} has {value}; leave it out")
        setattr(config.model, key, value)
    if config.lora.rank:  # adapters belong to one trunk's weights
        known = checksum(source)
        if config.lora.trunk not in ("", known):
            raise UserError(f"{source}: the weights have changed since lora.trunk was noted, and "
                            "adapters of other weights do not fit them: choose another --run.name")
        config.lora.trunk = known
    for key, value in found["tokenizer"].items():
        setattr(config.tokenizer, key, getattr(config.tokenizer, key) or value)
    if not config.tokenizer.model:
        raise UserError(f"{source}: no {' or '.join(TOKENIZERS)} lies there; name the tokenizer in "
                        "tokenizer.model")


def described(path: str, context: int) -> dict[str, dict]:
    """Return the fields of [model] and [tokenizer] that a checkpoint decides.

    Raises UserError, naming the field, for an architecture other than ours, and where `context`
    is longer than the model can read.
    """
    if not Path(path).exists():
        raise UserError(f"model.init_from = {path!r}: there is no such folder; if a run was "
                        "trained on it, put it, or a link to it, there again")
    model, longest = describe_folder(Path(path))
    if context > longest:
        raise UserError(f"model.context = {context}, but {path} reads at most {longest} tokens; "
                        "lower model.context")
    return {"model": model, "tokenizer": describe_tokenizer(Path(path))}


def describe_tokenizer(folder: Path) -> dict:
    """Find the tokenizer that lies with a checkpoint, and what ends a response, where that is said.
    Raises UserError where there is only a tokenizer.model that lacks tokens added later."""
    found = [folder / name for name in TOKENIZERS if (folder / name).exists()]
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    try:
        added = [int(i) for i in settings.get("added_tokens_decoder") or {}]
    except (TypeError, ValueError):
        raise UserError(f"{path}: added_tokens_decoder has a key that is no token id") from None
    if found and found[0].suffix == ".model" and max(added, default=0) >= Tokenizer(found[0]).vocab:
        found = found[1:]
        if not found:
            raise UserError(f"{folder}: tokenizer.model lacks tokens that tokenizer_config.json "
                            "adds; put the model's tokenizer.json there")
    if not found:
        return {}
    end = settings.get("eos_token") or ""
    end = end.get("content") if isinstance(end, dict) else end
    if not isinstance(end, str):
        raise UserError(f"{path}: eos_token is no text")
    return {"model": str(found[0]), "eos": end}


def describe_folder(folder: Path) -> tuple[dict, int]:
    """Return [model] of a Hugging Face folder's config.json, and the longest context."""
    if not folder.is_dir():
        raise UserError(f"model.init_from = {str(folder)!r}: name the folder that it lies in")
    path = folder / "config.json"
    config = read_json(path)
    if not config:
        raise UserError(f"model.init_from: {path} is missing; expected a Hugging Face folder")
    named = config.get("architectures")
    if named not in [[one] for one in ARCHITECTURES]:
        raise UserError(f"{path}: architectures = {named}; only one of "
                        f"{', '.join(ARCHITECTURES)} is read")
    architecture, = named
    for field, known in ONLY.items():
        if config.get(field, known[0]) not in known:
            raise UserError(f"{path}: {field} = {config[field]!r} is not supported, only "
                            f"{known[0]!r}")

    def number(field: str, otherwise=None, kind: tuple = (int,)):
        value = config.get(field) or otherwise
        if type(value) not in kind or not 0 < value < math.inf:
            raise UserError(f"{path}: field {field!r} is missing or no positive number")
        return value

    width, heads = number("hidden_size"), number("num_attention_heads")
    longest = number("max_position_embeddings")
    model = {"layers": number("num_hidden_layers"), "heads": heads, "width": width,
             "kv_heads": number("num_key_value_heads", heads),
             "hidden": number("intermediate_size"), "vocab": number("vocab_size"),
             "head_width": number("head_dim", width // heads),
             "norm_eps": number("rms_norm_eps", kind=(int, float)),
             "tied": bool(config.get("tie_word_embeddings", False)),
             "qkv_bias": architecture.startswith("Qwen2"),
             "qk_norm": architecture.startswith("Qwen3")}
    if "use_sliding_window" not in config:  # Qwen's: false, though it names a width
        longest = min(longest, number("sliding_window", longest))
    return model | describe_rotary(config, path), longest


def describe_rotary(config: dict, path: Path) -> dict:
    """Read rope_theta and rope_scaling, as transformers before and since version 5 writes them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_scaling = {rope!r} is no object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{path}: rope_type = {kind!r} is not supported; only 'default', 'llama3'")
    try:
        theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000)
        scaling = [] if kind == "default" else [float(rope[key]) for key in LLAMA3]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: rope_theta or rope scaling 'llama3' lacks a number: {error}"
                        ) from None
    if not all(0 < value < math.inf for value in (theta, *scaling)):
        raise UserError(f"{path}: rope_theta and rope scaling take positive numbers")
    return {"rope_theta": theta, "rope_scaling": scaling}


def read_weights(path: str, model) -> dict:
    """Read the weights of a checkpoint by our names, in float32, for a section [model] that
    `described` filled. Raises UserError for files that are missing or damaged, and tensors that are
    missing, left over or of another shape."""
    tensors = read_tensors(Path(path))
    tensors = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if model.tied:
        tensors.pop("lm_head.weight", None)

    def take(name: str, *shape: int):
        tensor = tensors.pop(name, None)
        if tensor is None or tensor.shape != shape:
            there = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise UserError(f"{path}: tensor {name} {there}; expected {shape}")
        return paired(tensor.float(), head_width(model)) if ROTATED.search(name) else tensor.float()

    ours = {name: torch.cat([take(part, *shape) for part, shape in parts.items()])
            for name, parts in layout(model)}
    if tensors:
        raise UserError(f"{path}: tensor {next(iter(tensors))} is none of this model's")
    return ours | ({"head.weight": ours["embedding.weight"]} if model.tied else {})


def layout(model):
    """Yield each tensor of ours, by its name, and those of Hugging Face's that it is made of, one
    after the other, with their shapes."""
    d, c = model.width, head_width(model)
    q, kv = model.heads * c, model.kv_heads * c
    yield "embedding.weight", {"model.embed_tokens.weight": (model.vocab, d)}
    yield "norm.weight", {"model.norm.weight": (d,)}
    if not model.tied:
        yield "head.weight", {"lm_head.weight": (model.vocab, d)}
    for i in range(model.layers):
        at, here = f"model.layers.{i}.", f"blocks.{i}."
        for what, inputs in (("weight", (d,)), ("bias", ()))[:1 + model.qkv_bias]:
            yield f"{here}attention.qkv.{what}", {
                f"{at}self_attn.{name}_proj.{what}": (rows, *inputs)
                for name, rows in (("q", q), ("k", kv), ("v", kv))}
        for name in ("q_norm", "k_norm") if model.qk_norm else ():
            yield f"{here}attention.{name}.weight", {f"{at}self_attn.{name}.weight": (c,)}
        yield f"{here}mlp.gate_up.weight", {
            f"{at}mlp.{name}_proj.weight": (model.hidden, d) for name in ("gate", "up")}
        for name, theirs in BLOCK.items():
            shape = {"attention.out.weight": (d, q), "mlp.down.weight": (d, model.hidden)}
            yield here + name, {f"{at}{theirs}.weight": shape.get(name, (d,))}


def head_width(model) -> int:
    """Return the width of a head, given or derived from the other fields."""
    return model.head_width or model.width // model.heads


def paired(rows, width: int):
    """Put rows of queries or keys that turn together side by side: (i, i + C/2) become
    (2i, 2i + 1) in each head."""
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)


def unpaired(rows, width: int):
    """Reverse `paired`."""
    return rows.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).flatten(0, 2)


@functools.cache
def checksum(path: str) -> str:
    """Return the SHA-256 of each of a checkpoint's weight files. Raises UserError where one is
    missing or cannot be read."""
    try:
        return " ".join(map(checksum_of_file, weight_files(Path(path))))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot read the weights ({error.strerror}); download "
                        "it again") from None


def weight_files(folder: Path) -> list[Path]:
    """Find a folder's weights: model.safetensors or pytorch_model.bin, whole or in parts."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = read_json(folder / f"{whole}.index.json").get("weight_map")
        names = dict.fromkeys(index.values()) if isinstance(index, dict) else ()
        files = [folder / name for name in names] or [folder / whole]
        if any(path.exists() for path in files):
            return files
    raise UserError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")


def read_tensors(folder: Path) -> dict:
    """Read all tensors of a folder."""
    tensors = {}
    for path in weight_files(folder):
        read = (safetensors().load_file if path.suffix == ".safetensors" else
                functools.partial(torch.load, map_location="cpu", weights_only=True))
        try:
            tensors |= read(path)
        except Exception as error:  # safetensors and torch raise several kinds for a damaged file
            raise UserError(f"{path}: cannot read the weights ({reason_of(error)}); download it "
                            "again") from None
    return tensors


def safetensors():
    """Import the optional library. Raises UserError where it is not installed."""
    try:
        import safetensors.torch
    except ImportError:
        raise UserError("safetensors files need an extra: pip install safetensors") from None
    return safetensors.torch


# ------------------------------------------------------------------------------------- the way back


def their_weights(ours: dict, model) -> dict:
    """Return weights by Hugging Face's names, from whole weights by ours (no adapters)."""
    theirs = {}
    for name, parts in layout(model):
        sizes = [shape[0] for shape in parts.values()] if len(parts) > 1 else len(ours[name])
        for part, tensor in zip(parts, ours[name].split(sizes)):
            theirs[part] = unpaired(tensor, head_width(model)) if ROTATED.search(part) else tensor
    return {name: tensor.contiguous() for name, tensor in theirs.items()}


def their_config(model, vocab: int, bos: int, eos: int, longest: int) -> dict:
    """Return config.json of a model, as transformers before and since version 5 reads it. Raises
    UserError for one with biases and norms of queries and keys, which no architecture has."""
    if model.qkv_bias and model.qk_norm:
        raise UserError("no Hugging Face model has both model.qkv_bias and model.qk_norm; leave "
                        "one of them out")
    name = "Qwen2" if model.qkv_bias else "Qwen3" if model.qk_norm else "Llama"
    scaling = {"rope_type": "llama3"} | dict(zip(LLAMA3, model.rope_scaling))
    if model.rope_scaling:
        scaling["original_max_position_embeddings"] = int(model.rope_scaling[-1])
    rope = scaling if model.rope_scaling else {"rope_type": "default"}
    windows = {"use_sliding_window": False} if name != "Llama" else {}
    return {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower(),
            **windows, "hidden_act": "silu",
            "hidden_size": model.width, "intermediate_size": model.hidden,
            "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads, "head_dim": head_width(model),
            "vocab_size": vocab, "max_position_embeddings": longest,
            "rms_norm_eps": model.norm_eps, "rope_theta": model.rope_theta,
            "rope_scaling": scaling if model.rope_scaling else None,
            "rope_parameters": rope | {"rope_theta": model.rope_theta},
            "tie_word_embeddings": model.tied, "attention_bias": False, "mlp_bias": False,
            "bos_token_id": bos if bos >= 0 else None, "eos_token_id": eos,
            "torch_dtype": "float32"}


def write_folder(folder: Path, weights: dict, config, vocab: int, tokenizer):
    """Write whole weights (lora.merged) as a Hugging Face folder, with the tokenizer and, in
    templates.json, what the model expects to read. Raises UserError where the folder has a model
    already, or cannot be written."""
    save = safetensors().save
    source = Path(config.model.init_from) if config.model.init_from else None
    longest = describe_folder(source)[1] if source else config.model.context
    content = their_config(config.model, vocab, tokenizer.bos, tokenizer.eos, longest)
    if (folder / "config.json").exists():
        raise UserError(f"--to {folder}: holds a model already; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if source and (source / CHAT).exists():
            shutil.copyfile(source / CHAT, folder / CHAT)
        shutil.copyfile(tokenizer.path, folder / tokenizer.path.name)
    except OSError as error:
        raise UserError(f"--to {folder}: cannot write it ({error.strerror})") from None
    settings = read_json(source / "tokenizer_config.json") if source else {}
    write_json(folder / "tokenizer_config.json", (settings or tokenizer.settings()) | {
        "eos_token": tokenizer.piece(tokenizer.eos)})
    write_json(folder / "templates.json", written(vars(config.template), tokenizer))
    data = save(their_weights(weights, config.model), {"format": "pt"})
    write_whole(folder / "model.safetensors", lambda file: file.write(data))
    write_json(folder / "config.json", content)  # the last: what has it is whole


def written(templates: dict[str, str], tokenizer) -> dict[str, str]:
    """Return the templates as whole texts have to be: without a space at the end, which is the
    response's own, and with the space that some tokenizers always put before a turn's text and a
    reference."""
    templates = {name: text.removesuffix(" ") for name, text in templates.items()}
    if not tokenizer.always_spaced:
        return templates
    slots = {"policy": "", "pit": "y_ref"}
    return {name: re.sub(rf" ?(\{{{slots.get(name, 'x')}\}})", r" \1", text)
            for name, text in templates.items()}


def write_json(path: Path, content: dict) -> None:
    write_whole(path, lambda file: file.write(json.dumps(content, indent=1).encode()))
