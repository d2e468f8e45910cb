"""What all normalisations share: xhat = (x − mu) rstd, y = gamma xhat + beta, and the way back.

PyTorch's kernels compute the same in one pass and serve while nothing differentiates the backward; these
are the formulas that serve otherwise. They make mu and rstd again from x: saved ones have lost their
way to x, and a second derivative through them would be wrong without a word (PyTorch's #76185, #104040).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Fold(NamedTuple):
    """How x and its parameters are looked at.

    x, gamma: the shapes that fit each other. mean: over all that shares one mu and rstd, dimensions
    kept. share: the dimensions that share one gamma and beta.
    """

    x: tuple
    gamma: tuple
    mean: Callable
    share: tuple


def over(*dims):
    return lambda t: t.mean(dims, keepdim=True)


def standardised(x, mean, eps, centred=True):
    """xhat = (x − mu) rstd and rstd = 1 / √(mean((x − mu)²) + ε), mu = mean(x), or 0 if not centred"""
    if centred:
        x = x - mean(x)
    rstd = torch.rsqrt(mean(x.square()) + eps)
    return x * rstd, rstd


def through(dxhat, xhat, rstd, mean, centred=True):
    """dx = rstd (dxhat − mean(dxhat) − xhat mean(dxhat xhat)), without mean(dxhat) if not centred

    The Jacobian is symmetric: the same takes dxhat back to dx and a step of x on to one of xhat.
    """
    along = dxhat - xhat * mean(dxhat * xhat)
    if centred:
        along = along - mean(dxhat)
    return rstd * along


def gradients(needs, dy, x, gamma, fold, eps, centred=True):
    """dbeta = Σ dy;  dgamma = Σ dy xhat;  dxhat = gamma dy, and through the statistics to dx"""
    dx = dgamma = dbeta = None
    shape, dtype = dy.shape, dy.dtype
    dy = wide(dy).reshape(fold.x)
    if centred and needs.beta:
        dbeta = dy.sum(fold.share)
    if needs.x or needs.gamma:
        xhat, rstd = standardised(wide(x).reshape(fold.x), fold.mean, eps, centred)
    if needs.gamma:
        dgamma = (dy * xhat).sum(fold.share)
    if needs.x:
        dxhat = dy if gamma is None else dy * wide(gamma).reshape(fold.gamma)
        dx = through(dxhat, xhat, rstd, fold.mean, centred).reshape(shape).to(dtype)
    return dx, dgamma, dbeta


def tangent(step, x, gamma, fold, eps, centred=True):
    """ẏ = gamma ẋhat + gammȧ xhat + betȧ"""
    xhat, rstd = standardised(wide(x).reshape(fold.x), fold.mean, eps, centred)
    dy = torch.zeros_like(xhat)
    if step.x is not None:
        dxhat = through(wide(step.x).reshape(fold.x), xhat, rstd, fold.mean, centred)
        dy = dy + (dxhat if gamma is None else dxhat * wide(gamma).reshape(fold.gamma))
    if step.gamma is not None:
        dy = dy + xhat * wide(step.gamma).reshape(fold.gamma)
    if centred and step.beta is not None:
        dy = dy + wide(step.beta).reshape(fold.gamma)
    return dy.reshape(x.shape).to(x.dtype)


def wide(t):
    """In float32 at least, where torch's kernels compute as well."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def copies(*parameters):
    """Of those that are there: an optimizer may step before they are read again."""
    return tuple(p.detach().clone() for p in parameters if p is not None)


def given(tensors, *present):
    """The tensors in the places where one is present, None in the others."""
    tensors = iter(tensors)
    return tuple(next(tensors) if there else None for there in present)
