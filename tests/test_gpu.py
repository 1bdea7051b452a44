"""On a CUDA device: the operators agree with the CPU, and a run works in every precision. Run with `pytest -m gpu`."""

import pytest
import torch

from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.experiment import RunConfig, train
from fadeviz.upsamplers import Skip
from test_upsamplers import NAMES, case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", NAMES)
def test_operators_agree_with_the_cpu(name):
    operator, x, skip = case(name, size=(9, 14), dtype=torch.float64)
    x.requires_grad_()
    y = operator(x, skip)
    (wanted,) = torch.autograd.grad(y.sin().sum(), x)
    indices = None if skip.indices is None else skip.indices.cuda()
    there = x.detach().cuda().requires_grad_()
    z = operator.cuda()(there, Skip(skip.feature.cuda(), indices))
    (got,) = torch.autograd.grad(z.sin().sum(), there)
    torch.testing.assert_close(z.cpu(), y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("upsampler", ["fade", "max_unpool"])
def test_a_run(precision, upsampler, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 8)
    config = RunConfig(
        upsampler, size=64, width=0.125, steps=4, snapshots="1:4:1", observe=4, precision=precision, device="cuda"
    )
    finished = train(config, tmp_path / "run")
    assert finished.steps == (0, 1, 2, 3, 4)
    assert finished.info.device == torch.cuda.get_device_name()


def test_interrupted_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 8)
    config = RunConfig(size=64, width=0.125, steps=6, snapshots="1:6:1", observe=4, checkpoint_every=2, device="cuda")

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "a", on_progress=stop)
    train(config, tmp_path / "a", resume=True)
    train(config, tmp_path / "b")
    for file in (tmp_path / "b" / "snapshots").iterdir():
        assert (tmp_path / "a" / "snapshots" / file.name).read_bytes() == file.read_bytes(), file.name
