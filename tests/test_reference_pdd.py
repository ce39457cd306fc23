"""PDD's gate and three training steps with it, compared with numbers from the authors' gate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.gates import gate
from compression.objectives.base import distillation_divergence
from tests.reference_cases import CASES, Case, assert_matches


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-12)


def test_gate():
    case = Case("pdd_gate_p")
    m, x = case["input/m"].requires_grad_(), case["input/x"].requires_grad_()
    out = gate(m).view(1, -1, 1, 1) * x
    assert torch.equal(gate(m).detach(), case["expect/gate"])
    assert_close(torch.autograd.grad(gate(m).sum(), m)[0], case["expect/surrogate"])
    assert_close(out, case["expect/out"])
    gradients = torch.autograd.grad(out, [m, x], case["input/upstream_grad"])
    assert_close(gradients[0], case["expect/grad_m"])
    assert_close(gradients[1], case["expect/grad_x"])


class Gated(nn.Module):
    """Convolution, BatchNorm, ReLU, gate, average, linear; names as in the reference case."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(3, 6, 3, padding=1))
        self.add_module("1", nn.BatchNorm2d(6))
        self.gate = nn.ParameterDict({"m": torch.empty(6)})
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.get_submodule("1")(self.get_submodule("0")(x)))
        return self.fc((gate(self.gate["m"]).view(1, -1, 1, 1) * x).mean(dim=(2, 3)))


def test_training_with_gates():
    case = Case("pdd_trace_p")
    values = CASES["pdd_trace_p"]["params"]
    model = Gated().double().train()
    tracked = {"1.num_batches_tracked": torch.tensor(0)}
    model.load_state_dict({**case.group("param/"), **case.group("buffer/"), **tracked})
    optimizer = torch.optim.SGD(model.parameters(), values["lr"], values["momentum"], weight_decay=5e-3)
    history = [gate(model.gate["m"]).detach()]
    for step in range(3):
        logits = model(case[f"input/step{step}/x"])
        ce = F.cross_entropy(logits, case[f"input/step{step}/y"])
        kl = distillation_divergence(case[f"input/step{step}/teacher_logits"], logits, values["T"])
        loss = values["alpha_ce"] * ce + (1 - values["alpha_ce"]) * kl
        optimizer.zero_grad()
        loss.backward()
        expect = f"expect/step{step}/"
        assert_matches(logits, case[expect + "logits"])
        assert_matches(ce, case[expect + "ce"])
        assert_matches(kl / 9, case[expect + "kl_batchmean_without_T2"])
        assert_matches(loss, case[expect + "loss"])
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            if name == "0.bias":  # BatchNorm cancels it: its gradient is only rounding error
                assert float(parameter.grad.abs().max()) < 1e-12
            else:
                assert_matches(parameter.grad, case[f"{expect}grad/{name}"])
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert_matches(parameter, case[f"{expect}param_after/{name}"])
        history.append(gate(model.gate["m"]).detach())
    assert torch.equal(torch.stack(history), case["expect/gate_history"])
    assert_matches(model.get_buffer("1.running_mean"), case["expect/running_mean_after"])
    assert_matches(model.get_buffer("1.running_var"), case["expect/running_var_after"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gate_keeps_the_dtype(dtype: torch.dtype):
    m = torch.tensor([-2, -0.5, 0, 0.25, 3], dtype=dtype, requires_grad=True)
    assert gate(m).dtype is dtype
    assert gate(m).tolist() == [0, 0, 0.5, 1, 1]
    assert torch.autograd.grad(gate(m).sum(), m)[0].tolist() == [0, 0.5, 1, 0.75, 0]
