"""Functions that a compiler leaves alone, with all that they call."""

from torch._C._dynamo import eval_frame

_LEFT_ALONE = eval_frame._FrameExecStrategy(
    eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP
)


def uncompiled(function):
    """The function itself, never compiled.

    A compiler that has given a part of a model up, after eight kinds of arguments, say, runs it as it is, and
    compiles what that calls: the frames that record the pass, too, which it would take for every function of
    like arguments.
    """
    eval_frame.set_code_exec_strategy(function.__code__, _LEFT_ALONE)
    return function
