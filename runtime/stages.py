"""The stages of a run, each a checkpoint: what of the config decides it, and what reports call it.

Inputs are sections of the config or single fields ("section.key"), as Run.stage takes them.
"""

BASE = ("data", "tokenizer", "template", "model", "lora")  # what every model depends on
POINTWISE = BASE + ("sft", "reward.pool", "reward.logp_feature", "reward.lm_coef")
OF_R_P = POINTWISE + ("rp",)
SUPERVISED = BASE + ("sft", "pit_sft", "reward", "rp", "rpit")


def inputs_of(config) -> dict[str, tuple[str, ...]]:
    """Return the inputs of each stage that this config has, in order."""
    supervised = {
        "data": ("data", "tokenizer", "template"), "sft": BASE + ("sft",),
        "pit_sft": BASE + ("sft", "pit_sft"), "rp": OF_R_P,
        "rpit": BASE + ("sft", "pit_sft", "reward", "rpit")}
    judge = {"judge": POINTWISE + ("judge",)} if config.trains_judge() else {}
    refiner = {"refiner": BASE + ("sft", "pit_sft", "refine")} if config.refine.lessons else {}
    rival = {"sft_more": BASE + ("sft", "pit_sft")} if config.eval.equal_budget else {}
    return supervised | rival | rl_inputs(config) | judge | refiner


def rl_inputs(config) -> dict[str, tuple[str, ...]]:
    """Return the inputs of each stage of RL. A stage of PIT depends on those before it, too."""
    inputs, before = {"rlhf": OF_R_P + ("ppo", "rlhf")}, SUPERVISED + (
        "ppo", "pit.score", "pit.score_file")
    for name in config.pit.curriculum:
        before += (name,) if getattr(config, name).reference == "data" else ("rlhf", name)
        inputs[name] = before
    if config.eval.equal_budget:
        inputs["rlhf_more"] = inputs["rlhf"] + ("pit_sft",) + tuple(
            f"{name}.{what}" for name in config.pit.curriculum
            for what in ("iterations", "reference", "best_of"))
    return inputs


def title(stage: str) -> str:
    """Return what the report calls the policy of a stage: of stage0 "PIT stage 0"."""
    others = {"rlhf": "M_P^RL", "rlhf_more": "RLHF equal budget",
              "sft_more": "M_P^SFT equal budget"}
    return others.get(stage, f"PIT stage {stage.removeprefix('stage')}")
