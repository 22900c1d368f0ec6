"""Time of training and of an improvement against the model's size and the context, beside the
operations that they take.

    python benchmarks/scaling.py

Training: a step on 2,048 tokens in rows of the context's length. Improvement: 8 drafts, a prompt of
half the context, a quarter of it new tokens. One thread, float32, vocabulary 512.
"""

import torch
from common import alternate, product_flops, report

from model import GPT, pad_rows, sample
from runtime import ModelSection
from train_reward import lm_loss

SIZES = [(3, 128), (4, 256), (6, 512)]    # layers, width
CONTEXTS = [128, 256, 512]
DRAFTS, TOKENS, VOCAB = 8, 2048, 512


def operations(config: ModelSection, seen: float) -> float:
    """Of one token's forward pass, which looks at `seen` tokens: the linear layers, the output
    layer, and the two products of the attention."""
    return product_flops(config, VOCAB) + 4 * config.layers * config.width * seen


def measure(layers: int, width: int, context: int) -> None:
    config = ModelSection(layers=layers, heads=width // 64, kv_heads=width // 64, width=width,
                          hidden=8 * width // 3 // 8 * 8, context=context)
    model = GPT(config, VOCAB)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, VOCAB, (TOKENS // context, context)).tolist()
    rows = pad_rows([row[:1] for row in tokens], [row[1:] for row in tokens])
    prompts = torch.randint(0, VOCAB, (DRAFTS, context // 2)).tolist()
    new = context // 4

    def train():
        loss, count, _ = lm_loss(model, rows)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = alternate({"train": train, "improve": lambda: sample(
        model, prompts, torch.rand(DRAFTS, new), 1.0, -1)}, 5)
    training = 3 * TOKENS * operations(config, context / 2)
    improving = DRAFTS * (context // 2 * operations(config, context / 4)
                          + new * operations(config, 5 * context / 8))
    report("scaling", parameters=sum(p.numel() for p in model.parameters()), layers=layers,
           width=width, context=context, training_s=seconds["train"], training_gflop=training / 1e9,
           training_gflops=training / 1e9 / seconds["train"], improving_s=seconds["improve"],
           improving_gflop=improving / 1e9, improving_gflops=improving / 1e9 / seconds["improve"])


def main() -> None:
    for layers, width in SIZES:
        measure(layers, width, CONTEXTS[0])
    for context in CONTEXTS[1:]:
        measure(*SIZES[1], context)


if __name__ == "__main__":
    main()
