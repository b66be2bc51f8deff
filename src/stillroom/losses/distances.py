"""How far a student's map is from a teacher's: per cell or per picture, always in fp32, autocast or
not.

Every function takes which cells are valid; those that are not are 0 in what it returns, move
nothing and get no gradient, not even where they are infinite.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from stillroom.losses.cells import autocast_off, kept

Map = Float[Tensor, "b c y x"]
Valid = Bool[Tensor, "b y x"]
Cells = Float[Tensor, "b y x"]
Pictures = Float[Tensor, "b"]


def soft_kl(output: Map, target: Map, valid: Valid, temperature: float) -> Cells:
    """Return T^2 KL(teacher / T || student / T) of each cell; Bernoulli for one channel.

    Source: Hinton, Vinyals, Dean 2015, section 2 (the factor T^2 keeps the gradient's size).
    """
    with autocast_off(output):
        student, teacher = kept(output, valid) / temperature, kept(target, valid) / temperature
        if output.shape[1] == 1:
            student = torch.cat([student, -student], 1)
            teacher = torch.cat([teacher, -teacher], 1)
            log_q, log_p = functional.logsigmoid(student), functional.logsigmoid(teacher)
        else:
            log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum(1) * temperature**2


def channel_kl(output: Map, target: Map, valid: Valid, temperature: float) -> Pictures:
    """Return of each picture the mean over channels of T^2 KL(teacher / T || student / T), the
    softmax of a channel being over the picture's valid cells.

    Source: Shu et al. 2021, channel-wise knowledge distillation, equation 5.
    """
    with autocast_off(output):
        log_q = _over_cells(output, valid, temperature)
        log_p = _over_cells(target, valid, temperature)
        cells = (log_p.exp() * (log_p - log_q)).masked_fill(~valid.flatten(1).unsqueeze(1), 0.0)
        return cells.sum(2).mean(1) * temperature**2


def squared_error(output: Map, target: Map, valid: Valid) -> Cells:
    """Return the mean over channels of (output - target)^2 of each cell."""
    with autocast_off(output):
        return kept(output.float() - target.float(), valid).square().mean(1)


def cosine(output: Map, target: Map, valid: Valid) -> Cells:
    """Return 1 - cos(output, target) of each cell's vector of channels."""
    with autocast_off(output):
        both = kept(output, valid), kept(target, valid)
        return (1 - functional.cosine_similarity(*both, dim=1)).masked_fill(~valid, 0.0)


def picture_cosine(output: Map, target: Map, valid: Valid) -> Pictures:
    """Return 1 - cos(output, target) of each picture's whole map as one vector."""
    with autocast_off(output):
        both = kept(output, valid).flatten(1), kept(target, valid).flatten(1)
        distance = 1 - functional.cosine_similarity(*both, dim=1)
        return distance.masked_fill(~valid.flatten(1).any(1), 0.0)


def cauchy_schwarz(output: Map, target: Map, valid: Valid, temperature: float) -> Cells:
    """Return -log((sum s t)^2 / (sum s^2 sum t^2)) of each cell, s and t being the softmax over
    channels of output / T and target / T.

    Source: Principe 2010, Information Theoretic Learning, section 2.5; in logarithms throughout, so
    that no product underflows.
    """
    with autocast_off(output):
        s = (kept(output, valid) / temperature).log_softmax(1)
        t = (kept(target, valid) / temperature).log_softmax(1)
        own = (2 * s).logsumexp(1) + (2 * t).logsumexp(1)
        return (own - 2 * (s + t).logsumexp(1)).masked_fill(~valid, 0.0)


def _over_cells(values: Map, valid: Valid, temperature: float) -> Float[Tensor, "b c n"]:
    """Return the logarithm of the softmax over the valid cells of each channel."""
    with_finite_holes = (values.float() / temperature).masked_fill(~valid.unsqueeze(1), -1e30)
    return with_finite_holes.flatten(2).log_softmax(2)
