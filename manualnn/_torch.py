"""What manualnn uses of PyTorch that has no public name, each under a name that says what it is for.

Nobody else in the package names one of them (tests/project/test_torch_private.py walks the code), and each has
a test there: where a release of PyTorch changes one, that test says which.

``F`` is torch.nn.functional as it was when manualnn was imported. Whoever replaces a function there later means
the layers that call it by name; were it called inside a hand-written forward, backward would be the derivative
of another function.
"""

import types

import torch
from torch._C import _autograd, _functorch
from torch._C._dynamo import eval_frame
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd as Convolutions
from torch.nn.modules.module import _has_any_global_hook as has_global_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as without_dispatch_modes
from torch.utils._pytree import tree_iter, tree_leaves, tree_map, tree_map_only

__all__ = ["Convolutions", "F", "TorchDispatchMode", "has_global_hook", "suggest_memory_format"]
__all__ += ["tree_iter", "tree_leaves", "tree_map", "tree_map_only", "without_dispatch_modes"]

F = types.ModuleType(functional.__name__)
vars(F).update(vars(functional))

# --- which moment it is: they are asked in each call of an op ----------------------------------

any_autocast = torch._C._is_any_autocast_enabled
is_jit_tracing = torch._C._is_tracing
transforms_active = torch._C._are_functorch_transforms_active  # of torch.func
graph_task = torch._C._current_graph_task_id  # of the backward pass that this thread runs, or -1
after_backward = (
    torch.autograd.Variable._execution_engine.queue_callback
)  # called when that pass ends


def forward_level():
    """The level of forward-mode differentiation, -1 outside of it."""
    return forward_ad._current_level


forward_mode_enabled = forward_ad._set_fwd_grad_enabled

# --- tensors -----------------------------------------------------------------------------------

is_alias_of = torch._C._is_alias_of  # two tensors of one storage
conj_view, neg_view = torch._conj, torch._neg_view
no_torch_function = torch._C._disabled_torch_function_impl  # what a subclass states that wants none
without_memory = (
    torch.Tensor._make_wrapper_subclass
)  # a tensor of a subclass, of this shape and dtype
_DEFAULT = _autograd.CreationMeta.DEFAULT


def holders(t, storage):
    """How many hold a tensor, and how many its memory, ``storage`` among them."""
    return t._use_count(), torch._C._storage_Use_Count(storage._cdata)


def is_written_at_own_risk(view):
    """Whether a view is one of several of one call, or was made where no gradients were recorded."""
    return _autograd._get_creation_meta(view) != _DEFAULT


_BATCHED = torch._C._parse_dispatch_key("Batched")


def is_batched(tensor):
    """Whether a gradient is many in the place of one: ``torch.autograd.grad(..., is_grads_batched=True)``."""
    return torch._C._dispatch_keys(tensor).has(_BATCHED)


next_node = (
    torch.autograd._get_sequence_nr
)  # the number that the next node of this thread's graph will have


# --- modes and hooks ---------------------------------------------------------------------------

without_torch_function = (
    torch._C.DisableTorchFunction
)  # a context: ops as if no mode and no subclass were
dispatch_modes = torch._C._len_torch_dispatch_stack
top_saved_tensors_hooks = _autograd._top_saved_tensors_default_hooks
push_saved_tensors_hooks = _autograd._push_saved_tensors_default_hooks
pop_saved_tensors_hooks = _autograd._pop_saved_tensors_default_hooks
saved_tensors_hooks_allowed = _autograd._saved_tensors_hooks_is_enabled


def all_function_modes():
    """The torch function modes that are on, the outermost first."""
    return map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))


def all_dispatch_modes():
    """The dispatch modes that are on, the outermost first."""
    return map(torch._C._get_dispatch_stack_at, range(dispatch_modes()))


# --- torch.func --------------------------------------------------------------------------------

is_functorch_tensor = _functorch.is_functorch_wrapped_tensor
is_batchedtensor = _functorch.is_batchedtensor
unwrapped = _functorch.get_unwrapped
batch_dim, batch_level = _functorch.maybe_get_bdim, _functorch.maybe_get_level
add_batch_dim = _functorch._add_batch_dim


def within_jvp():
    """Whether one of the transforms of torch.func that are on is forward-mode differentiation."""
    jvp = _functorch.TransformType.Jvp
    return any(level.key() == jvp for level in _functorch.get_interpreter_stack() or ())


# --- the compiler ------------------------------------------------------------------------------

_LEFT_ALONE = eval_frame._FrameExecStrategy(
    eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP
)


def uncompiled(function):
    """The function itself, never compiled, with all that it calls.

    A compiler that has given a part of a model up, after eight kinds of arguments, say, runs it as it is, and
    compiles what that calls: the frames that record the pass, too, which it would take for every function of
    like arguments.
    """
    eval_frame.set_code_exec_strategy(function.__code__, _LEFT_ALONE)
    return function


def called_by_graphs(function):
    """Dynamo does not look into an autograd.Function: a graph calls it."""
    torch._dynamo.allow_in_graph(function)


def never_traced(method):
    """``method``, which Dynamo would compile by itself where a graph calls it; None if it is so already."""
    return None if hasattr(method, "_torchdynamo_disable") else torch._dynamo.disable(method)


def constant_to_dynamo(function):
    """Dynamo runs ``function`` while it traces.

    torch.compiler.assume_constant_result says the same, and imports the compiler.
    """
    function._dynamo_marked_constant = True
    return function


# --- one-pass kernels --------------------------------------------------------------------------

_aten = torch.ops.aten


def overload_into(operation):
    """The overload of one of ATen's backward operations that writes in ``grad_input``; None of others."""
    if not isinstance(operation, torch._ops.OpOverload):
        return None
    packet = operation.overloadpacket
    return packet.grad_input if "grad_input" in packet.overloads() else None


unsafe_view = _aten._unsafe_view.default  # a view that autograd takes for none
to_copy = _aten._to_copy.default
softmax_backward = torch._softmax_backward_data
log_softmax_backward = torch._log_softmax_backward_data
safe_softmax_kernel = torch._safe_softmax  # a row of -inf becomes zeros
hardtanh, hardtanh_ = torch._C._nn.hardtanh, torch._C._nn.hardtanh_
prelu_kernel = _aten._prelu_kernel.default
prelu_backward = _aten._prelu_kernel_backward.default
adaptive_avg_pool2d_backward = _aten._adaptive_avg_pool2d_backward.default
adaptive_avg_pool3d_backward = _aten._adaptive_avg_pool3d_backward.default
rms_norm_kernel = _aten._fused_rms_norm
rms_norm_backward_kernel = _aten._fused_rms_norm_backward
batch_norm_kernel = torch._batch_norm_impl_index
batch_norm_backward_kernel = _aten._batch_norm_impl_index_backward
batch_norm_backend = torch._C._select_batch_norm_backend
canonical_mask, none_or_dtype = (
    functional._canonical_mask,
    functional._none_or_dtype,
)  # of attention
attention_choice = torch._fused_sdp_choice
flash_attention = _aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = _aten._scaled_dot_product_flash_attention_for_cpu_backward
