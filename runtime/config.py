"""Every knob on one page: the config's sections as dataclasses, a comment a field.

A field's type gives its allowed values (Literal), its metadata the bounds of a number: a number
without them has to be above 0. A new option is one edit here. Nothing of ours is imported.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Literal, get_args


def zero_or_more(default, most: float = sys.float_info.max):
    """Return a field for a number that may be 0; all others have to be above it."""
    return field(default=default, metadata={"low": 0, "high": most})


Comparison = Literal["wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw"]  # what a term may be
Layer = Literal["qkv", "out", "gate_up", "down"]                   # linear layers of a block
COMPARISONS, LAYERS = get_args(Comparison), get_args(Layer)
EQ2 = ("wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw")                # the paper's terms


@dataclass
class RunSection:
    name: str = "synthetic"     # the run's folder is <dir>/<name>
    dir: str = "runs"
    base: str = ""              # a run folder whose finished stages are used where they fit, or
                                # those of its own base
    seed: int = zero_or_more(1)
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: cuda where there is one, or cpu
    ranks: int = zero_or_more(0)  # processes on a CPU, one thread each; 0: one a core, at most 8
    amp: Literal["auto", "bf16", "off"] = "auto"            # autocast; auto: bf16 on a GPU
    shard: bool = False         # split weights and optimisers over the ranks (FSDP2)
    log_every: int = 20         # supervised steps between two lines of metrics.jsonl
    save_every: float = zero_or_more(60.0)  # seconds between two saves inside of a stage


@dataclass
class DataSection:
    files: list[str] = field(default_factory=list)  # preference pairs; none: make bills
    bills: int = 120_000        # pairs to make where no file is given
    total: Literal["first", "last"] = "first"  # bills: the place of the total; last: the control
    things: list[int] = field(  # bills: the fewest and the most things that a question lists
        default_factory=lambda: [3, 6], metadata={"low": 2, "high": 14})
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
    init_from: str = ""         # Hugging Face folder of a Llama or Qwen; sets the shape but context
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
    qkv_bias: bool = False      # queries, keys and values have biases (Qwen2)
    qk_norm: bool = False       # queries and keys are normalised before the rotation (Qwen3)
    micro_batch: int = zero_or_more(0)  # positions of a micro-batch; 0: 2,048, on a GPU 65,536
    look_every: int = zero_or_more(0)  # new tokens between checks for ended rows; 0: 1, GPU 16


@dataclass
class LoRASection:
    """Adapters instead of full training; all models share one frozen trunk, model.init_from."""
    rank: int = zero_or_more(0)  # 0: full training
    alpha: float = 32.0         # the change of a weight is alpha / rank B A
    linears: list[Layer] = field(default_factory=lambda: list(LAYERS))
    trunk: str = ""             # checksum of the frozen weights; model.init_from sets it


@dataclass
class FitSection:
    """One supervised training: M_P^SFT, M_PIT^SFT, R_P, R_PIT, or the judge."""
    steps: int = 1000
    batch: int = 64             # pairs a step
    pairs: int = zero_or_more(0)  # use only so many of the fold; 0: all
    lr: float = 1e-3
    warmup: int = zero_or_more(50)  # steps
    weight_decay: float = zero_or_more(0.01)
    clip: float = 1.0           # largest norm of the gradient

    def smallest(self) -> int:
        """Return how many pairs its smallest batch has, if the fold is large enough."""
        return min(self.batch, self.pairs or self.batch)


@dataclass
class RewardSection:
    pool: Literal["sum", "last"] = "sum"  # sum over y's tokens, or the last token's score
    lm_coef: float = zero_or_more(0.5)  # of the language-model loss beside (GRM, arXiv 2406.10216)
    logp_feature: bool = True   # score tokens by the trunk's own log-probabilities too
    terms: list[Comparison] = field(default_factory=lambda: list(EQ2))


@dataclass
class RefineSection:
    """Self-Refine, a rival by prompting: the policy reads `feedback`, then `rewrite`."""
    feedback: str = ""          # with {x} and {y_ref}; none: no such row in the report
    rewrite: str = ""           # with {x}, {y_ref} and {feedback}
    lessons: int = zero_or_more(0)  # on bills: teach a policy of its own, for as many times
                                # pit_sft.steps, to give feedback and to rewrite (report/rubric.py)


@dataclass
class PPOSection:
    batch: int = 256            # responses an iteration
    epochs: int = 1
    minibatches: int = 4
    lr: float = 2e-4
    advantage: Literal["critic", "group"] = "critic"  # GAE by a critic, or leave-one-out of a group
    group: int = field(default=4, metadata={"low": 2})  # responses to one prompt
    critic_lr: float = 1e-3
    critic_warmup: int = zero_or_more(4)  # iterations in which only the critic learns
    clip: float = 0.2
    gamma: float = zero_or_more(1.0, most=1)
    lam: float = zero_or_more(0.95, most=1)         # of the policy's advantages
    critic_lam: float = zero_or_more(0.95, most=1)  # of the returns that the critic learns
    temperature: float = 1.0    # of rollouts, old and new log-probabilities alike
    no_eos_score: float = field(  # of a response without its end, in standard deviations
        default=-5.0, metadata={"low": -sys.float_info.max})
    grad_clip: float = 1.0
    kl_power: float = zero_or_more(4.0)  # of KL / target, by which beta rises above it; 0: fixed
    kl_wall: float = field(default=16.0, metadata={"low": 1})  # times beta, the most it rises to

    def prompts(self) -> int:
        """Count the prompts of an iteration."""
        return self.batch // self.group if self.advantage == "group" else self.batch


@dataclass
class StageSection:
    """One run of PPO."""
    iterations: int = 50
    beta: float = zero_or_more(0.03)  # coefficient of the KL in the reward, below kl_target
    kl_target: float = 2.0      # nats a response; see ppo.kl_coefficient
    reference: Literal["data", "policy", "best", "improved"] = "policy"  # source of y_ref: y_l and
                                # y_w; M_P^RL; its best of `best_of` by R_P; half PIT's own rewrites
    best_of: int = 4
    score: str = ""             # of rlhf: a "file.py:function" of your own in the place of R_P
    score_file: str = ""        # checksum of that file; score sets it
    lr_scale: float = 1.0

    def batches(self, ppo: PPOSection) -> int:
        """Count the batches of ppo.batch responses that a stage of PIT samples, as y and y_ref."""
        drafts = {"data": 0, "policy": 1, "best": self.best_of, "improved": 1.5}[self.reference]
        return self.iterations + int(self.iterations * drafts * ppo.prompts() / ppo.batch)


@dataclass
class PITSection:
    curriculum: list[str] = field(default_factory=lambda: ["stage0", "stage1"])  # see Config
    score: str = "gap"  # R_PIT(x, y, y_ref), "difference": R_P(x, y) - R_P(x, y_ref), or a
                        # "file.py:function" of your own
    score_file: str = ""        # checksum of that file; score sets it


@dataclass
class EvalSection:
    split: Literal["valid", "test"] = "test"  # valid for every choice, test for the report
    prompts: int = 1000
    temperatures: list[float] = field(default_factory=lambda: [1.0, 0.5], metadata={"low": 0})
    iterations: int = 4
    best_of: int = 4
    examples: int = 8           # prompts that are shown with all their responses
    equal_budget: bool = False  # train a one-pass rival with all steps and samples of PIT
    seed: int = zero_or_more(1)  # of the evaluation's samples and of the examples that are shown
    judge: str = ""             # a "file.py:function" of your own that grades texts (x, y); none:
                                # on bills the hidden judge, on other data a reward model


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
        """Return the stages that pit.curriculum may name, in the order of the reports."""
        return [f.name for f in dataclasses.fields(self) if f.name.startswith("stage")]

    def trains_judge(self) -> bool:
        """Return whether the judge of the report is a reward model that is trained for it."""
        return bool(self.data.files and not self.eval.judge)


ONLY_SPEED = {"model.micro_batch", "model.look_every"}  # as run.amp, they change only the rounding
