"""PS-KD: self-knowledge distillation from the previous epoch (Kim et al., ICCV 2021, arXiv 2006.12000)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from compression.batch import Batch, Info
from compression.config import added, searched, with_fields
from compression.objectives.base import Model, Objective, check_share, full_precision
from compression.objectives.config import ObjectiveConfig
from compression.spaces import Range


class PSKD(Objective):
    """Cross-entropy with the target (1 - alpha_t) * onehot + alpha_t * p; p is the softmax of the previous epoch.

    alpha_t = alpha * (epoch + 1) / num_epochs. In epoch 0, and for a sample not seen before, p is the label.
    The memory is (num_train, K), one row for each sample, written at every call; a row of zeros means "not seen". With
    half_memory it is float16: half the size (2.6 GB for ImageNet), probabilities with three digits.

    Before the first `begin_epoch`, alpha_t is alpha and the memory is used. Criteria call the objective in this way: in
    step k of their inner loop, p is the softmax of step k - 1. (As in epoch 0, it would be plain cross-entropy.)
    """

    needs = frozenset({"index"})

    def __init__(self, alpha: float = 0.8, half_memory: bool = False) -> None:
        check_share(alpha=alpha)
        self.alpha = alpha
        self.half_memory = half_memory
        self.alpha_now = alpha
        self.memory: Tensor | None = None
        self.num_samples = 0
        self._first_epoch = False
        self._fresh: list[Tensor] = []

    def setup(self, info: Info, device: torch.device) -> None:
        self.num_samples = info.sizes["train"]

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        self.alpha_now = self.alpha * (epoch + 1) / num_epochs
        self._first_epoch = epoch == 0

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        logits = full_precision(model(batch.images))
        log_probabilities = F.log_softmax(logits, dim=1)
        memory = self._sized_memory(batch.index, logits)
        target = F.one_hot(batch.labels, logits.shape[1]).to(logits.dtype)
        if not self._first_epoch:
            rows = memory[batch.index].to(logits.dtype)
            target = torch.where(rows.sum(dim=1, keepdim=True) > 0, rows, target)
        memory[batch.index] = log_probabilities.detach().exp().to(memory.dtype)
        if dist.is_initialized():
            self._fresh.append(batch.index)
        soft = -(target * log_probabilities).sum(dim=1).mean()
        return {
            "cross_entropy": (1 - self.alpha_now) * F.cross_entropy(logits, batch.labels),
            "ps_kd": self.alpha_now * soft,
        }

    def scoring_batches(self, steps: int) -> int:
        return 1

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.memory is None else {"memory": self.memory}

    def load_state_dict(self, state: dict[str, Tensor], batch_at: Callable[[Tensor, int], Batch]) -> None:
        self.memory = state.get("memory")
        self._fresh = []

    def sync(self) -> None:
        """Send the rows written since the last call to every worker."""
        fresh, self._fresh = self._fresh, []
        if not (dist.is_initialized() and dist.get_world_size() > 1) or self.memory is None or not fresh:
            return
        # Every worker has written the same number of rows: all have equal shares of each global batch.
        index = torch.cat(fresh)
        rows = self.memory[index]
        world_size = dist.get_world_size()
        all_index = [torch.empty_like(index) for _ in range(world_size)]
        all_rows = [torch.empty_like(rows) for _ in range(world_size)]
        dist.all_gather(all_index, index)
        dist.all_gather(all_rows, rows)
        self.memory[torch.cat(all_index)] = torch.cat(all_rows)

    def _sized_memory(self, index: Tensor, logits: Tensor) -> Tensor:
        if self.memory is None:
            # Without `setup` (a criterion called directly), the batch determines the number of rows.
            num_rows = self.num_samples or int(index.max()) + 1
            dtype = torch.float16 if self.half_memory else logits.dtype
            self.memory = torch.zeros(num_rows, logits.shape[1], dtype=dtype, device=logits.device)
        elif not self.num_samples and int(index.max()) >= len(self.memory):
            missing = int(index.max()) + 1 - len(self.memory)
            self.memory = torch.cat([self.memory, self.memory.new_zeros(missing, logits.shape[1])])
        return self.memory


@dataclass(frozen=True)
class PSKDConfig(ObjectiveConfig):
    """Self-distillation from each sample's prediction in the previous epoch."""

    alpha: float = searched(0.8, Range(0.3, 0.95))
    """weight of the stored prediction in the target of the last epoch; it grows linearly from 0"""
    half_memory: bool = added(False)
    """store predictions in float16: half the memory, for many samples and classes"""

    label = "PS-KD"
    objective = with_fields(PSKD, "alpha", "half_memory")
