"""On a GPU, where there is one: the scripts do what they do on a CPU."""

import json
import math
import shutil
import subprocess

import pytest

from conftest import GPUS, command, read_lines

TINY, FITS = "configs/tiny.toml", ("sft", "pit_sft", "rp", "rpit")


def a_gpu_is_there() -> bool:
    return bool(GPUS and shutil.which("nvidia-smi")) and subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True).stdout.startswith("GPU")


pytestmark = pytest.mark.skipif(not a_gpu_is_there(), reason="needs a GPU")


def on_gpu(*arguments):
    done = command(*arguments, CUDA_VISIBLE_DEVICES=GPUS)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run(folder, name: str, *fields: str) -> list[dict]:
    """Return the log of a tiny run on the GPU."""
    on_gpu("train_pit.py", "--config", TINY, f"--run.dir={folder}", f"--run.name={name}",
           "--run.device=cuda", "--eval.prompts=4", *fields)
    return read_lines(folder / name / "metrics.jsonl")


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("cpu")
    done = command("train_reward.py", "--config", TINY, f"--run.dir={folder}")
    assert done.returncode == 0
    return read_lines(folder / "tiny" / "metrics.jsonl")


@pytest.mark.parametrize("fields, tolerance", [
    (["--run.amp=off"], 1e-4), ([], 0.02)])
def test_supervised_training_logs_what_a_cpu_does_and_ppo_runs(tmp_path, on_cpu, fields, tolerance):
    lines = run(tmp_path, "gpu", *fields)
    assert {line["stage"] for line in lines} == {
        *FITS, "rlhf", "stage0", "stage1", "sft_more", "rlhf_more"}
    supervised = [line for line in lines if line["stage"] in FITS]
    assert len(supervised) == len(on_cpu) > 0
    for one, other in zip(supervised, on_cpu):
        assert (one["stage"], one["step"]) == (other["stage"], other["step"])
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=tolerance)
    for line in lines:
        assert all(math.isfinite(x) for x in line.values() if isinstance(x, float))
        if "kl" in line and "--run.amp=off" in fields:
            assert line["sampler_gap_max"] == pytest.approx(0, abs=1e-4)


SAMPLES = """
import json, torch
from faster.sampling import sample
from model import GPT, token_logprobs
from runtime.config import ModelSection

uniforms = torch.rand(4, 20, generator=torch.Generator().manual_seed(1))
prompts, found = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]], []
for device in ("cpu", "cuda"):
    for look_every in (1, 16):
        torch.manual_seed(0)
        shape = ModelSection(width=32, hidden=48, kv_heads=2, context=48, look_every=look_every)
        model = GPT(shape, 11).to(device)
        rows = sample(model, prompts, uniforms, 1.0, 0)[0]
        found.append([device, rows.responses(), token_logprobs(model, rows).sum().item()])
print(json.dumps(found))
"""


def test_the_same_chances_draw_the_same_samples():
    found = json.loads(on_gpu("-c", SAMPLES))
    assert [device for device, *_ in found] == ["cpu", "cpu", "cuda", "cuda"]
    for _, responses, logp in found:
        assert responses == found[0][1] and logp == pytest.approx(found[0][2], abs=1e-4)
    assert any(0 in response for response in found[0][1])


def test_torchrun_on_one_gpu(tmp_path):
    """Run one rank: it takes its device from torchrun, but there is nothing to sum over."""
    on_gpu("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "train_pit.py",
           "--config", TINY, f"--run.dir={tmp_path}", "--run.device=cuda", "--eval.prompts=4")
    assert (tmp_path / "tiny" / "report.md").exists()
