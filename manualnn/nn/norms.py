"""Normalisation."""

from typing import Any

import torch
from torch import Tensor, distributed

from manualnn import functional as F
from manualnn.autograd.moment import bypass_function_mode
from manualnn.ops import norms


class BatchNorm1d(torch.nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class BatchNorm2d(torch.nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class BatchNorm3d(torch.nn.BatchNorm3d):
    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class SyncBatchNorm(torch.nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm, on any device and with any backend of torch.distributed."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return _batch_norm(self, input, checked=True)
        group = self.process_group or distributed.group.WORLD
        if distributed.get_world_size(group) == 1:
            return _batch_norm(self, input, checked=True)
        momentum = _count_batch(self, input, True)
        statistics = _statistics(self)
        return norms.SyncBatchNorm.apply(
            input, self.weight, self.bias, *statistics, momentum, self.eps, group
        )[0]

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> Any:
        module = super().convert_sync_batchnorm(module, process_group)
        for layer in module.modules():
            if type(layer) is torch.nn.SyncBatchNorm:
                layer.__class__ = cls
        return module


class LayerNorm(torch.nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class GroupNorm(torch.nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class InstanceNorm1d(torch.nn.InstanceNorm1d):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return _instance_norm(self, input)


class InstanceNorm2d(torch.nn.InstanceNorm2d):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return _instance_norm(self, input)


class InstanceNorm3d(torch.nn.InstanceNorm3d):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return _instance_norm(self, input)


def _batch_norm(self: Any, input: Tensor, checked: bool = False) -> Tensor:
    momentum = _count_batch(self, input, checked)
    by_batch = self.training or (self.running_mean is None and self.running_var is None)
    return F.batch_norm(
        input, *_statistics(self), self.weight, self.bias, by_batch, momentum, self.eps
    )


@bypass_function_mode
def _count_batch(self: Any, input: Tensor, checked: bool) -> float:
    """How far the running statistics are moved; of momentum None so that they are means of all batches."""
    if not checked:
        self._check_input_dim(input)
    momentum = self.momentum
    if self.training and self.track_running_stats:
        batches = self.num_batches_tracked
        if batches is not None:
            batches.add_(1)
            if momentum is None:
                return 1.0 / float(batches)
    return 0.0 if momentum is None else momentum


def _statistics(self: Any) -> tuple[Tensor | None, Tensor | None]:
    """Those to read in evaluation, or to move in training where they are tracked."""
    if self.training and not self.track_running_stats:
        return None, None
    return self.running_mean, self.running_var


def _instance_norm(self: Any, input: Tensor) -> Tensor:
    return F.instance_norm(
        input,
        self.running_mean,
        self.running_var,
        self.weight,
        self.bias,
        self.training or not self.track_running_stats,
        self.momentum if self.momentum is not None else 0.0,
        self.eps,
    )
