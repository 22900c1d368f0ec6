"""What makes a config impossible."""

import dataclasses
import math

from tools.settings import nearest

MAY_BE_ZERO = {"seed", "portion", "look_every", "warmup", "weight_decay", "lm_coef",
               "critic_warmup", "beta", "gamma", "lam", "kl_horizon", "temperatures"}
CHOICES = {"run.device": ("auto", "cuda", "mps", "cpu"), "run.amp": ("auto", "bf16", "off"),
           "run.compile": ("auto", "on", "off"), "data.total": ("first", "last"),
           "reward.pool": ("sum", "last"),
           "reward.terms": ("wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw"),
           "stage0.reference": ("data", "policy"), "stage1.reference": ("data", "policy"),
           "pit.curriculum": ("stage0", "stage1"), "pit.score": ("gap", "difference"),
           "eval.split": ("valid", "test")}


def problems(config):
    """Yield what cannot work, each in a line that names the field."""
    for section, keys in dataclasses.asdict(config).items():
        for key, value in keys.items():
            name = f"{section}.{key}"
            for item in value if isinstance(value, list) else [value]:
                if name in CHOICES and item not in CHOICES[name]:
                    yield f"{name}: {item!r}; {nearest(item, CHOICES[name])}"
                lowest = 0 if key in MAY_BE_ZERO else 1e-12
                if type(item) in (int, float) and key != "no_eos_score" and not (
                        lowest <= item < math.inf):
                    yield f"{name} = {item} is out of range"
    model, rows = config.model, config.ppo.minibatches * config.run.ranks
    for wrong, message in [
        (model.width % (2 * model.heads), "model.width must be an even multiple of model.heads"),
        (model.heads % model.kv_heads, "model.heads must be a multiple of model.kv_heads"),
        (config.ppo.batch % rows or config.ppo.batch % 2,
         f"ppo.batch must be even and a multiple of minibatches x ranks ({rows})"),
        (not (config.pit.curriculum and config.reward.terms and config.eval.temperatures),
         "pit.curriculum, reward.terms and eval.temperatures must not be empty"),
        (min(config.eval.prompts, config.data.test, config.data.valid) < 2,
         "eval.prompts, data.test and data.valid must be at least 2"),
        (any(getattr(config, fit).batch < config.run.ranks for fit in
             ("sft", "pit_sft", "rp", "rpit")), "a batch is smaller than run.ranks"),
        (config.run.shard and 0 < model.portion < 2 * model.context,
         "with run.shard model.portion must be at least 2 x model.context"),
        ("{x}" not in config.template.policy, "template.policy lacks {x}"),
        ("{x}" not in config.template.pit or "{y_ref}" not in config.template.pit,
         "template.pit needs both {x} and {y_ref}"),
    ]:
        if wrong:
            yield message
