"""Single modules: outputs in both modes and gradients against the authors'."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from stripseg.model import families
from stripseg.model.backbone.attention import (
    EfficientChannelAttention,
    GatedChannelTransformation,
    TripletAttention,
)
from stripseg.model.strip_pooling import MixedPoolingModule, StripPoolingModule

from .fixture import Errors, Fixture, UnknownFixtureError, apart, relative, sliced


def renamed(pairs: families.Pairs) -> Callable[[str], str]:
    return partial(families.substitute, prefixes=pairs, infixes=())


TRIPLET = tuple(
    (f"{theirs}.conv.{layer}.", f"{ours}.{layer}.")
    for theirs, ours in (("cw", "channel_width"), ("hc", "channel_height"), ("hw", "height_width"))
    for layer in ("conv", "bn")
)


# how the source of a module ends, or names its file
KINDS = ("SPBlock", "StripPooling", "eca_layer", "GCT", "triplet_attention")


def module_of(fixture: Fixture) -> tuple[nn.Module, Callable[[str], str], str]:
    """(our module, their key -> ours, the method that computes what theirs returns)."""
    kind = next((kind for kind in KINDS if kind in fixture.facts["source"]), None)
    if kind == "SPBlock":
        o = fixture.option({"inplanes": 0, "outplanes": 0})
        if o.inplanes != o.outplanes:
            raise UnknownFixtureError("strip pooling that changes the number of channels")
        module = StripPoolingModule(o.inplanes)
        return module, renamed(families.STRIP_POOLING_MODULE), "attention"
    if kind == "StripPooling":
        o = fixture.option({"in_channels": 0, "pool_size": (20, 12), "up_kwargs": None})
        module = MixedPoolingModule(o.in_channels, o.pool_size)
        return module, renamed(families.MIXED_POOLING_MODULE), "forward"
    if kind == "eca_layer":
        o = fixture.option({"channel": 0, "k_size": 3})
        return EfficientChannelAttention(o.k_size), renamed(()), "forward"
    if kind == "GCT":
        o = fixture.option({"num_channels": 0, "epsilon": 1e-5, "mode": "l2", "after_relu": False})
        module = GatedChannelTransformation(
            o.num_channels, norm=o.mode, epsilon=o.epsilon, after_relu=o.after_relu
        )
        return module, renamed(()), "forward"
    if kind == "triplet_attention":
        o = fixture.option({"no_spatial": False})
        return TripletAttention(spatial=not o.no_spatial), renamed(TRIPLET), "forward"
    raise UnknownFixtureError(f"module {fixture.facts['source']}")


def check_module(fixture: Fixture) -> Errors:
    facts, stored = fixture.facts, fixture.arrays
    module, ours, method = module_of(fixture)
    weights = {ours(key): value for key, value in fixture.weights().items()}
    module.load_state_dict(weights)
    x = fixture.input().requires_grad_()
    output = getattr(module.eval(), method)(x)
    yield "output", apart(sliced(output, facts["slicing"]), stored["output"])
    cotangent = fixture.recipe.make_input(list(output.shape), "cotangent")
    (output * torch.from_numpy(cotangent)).sum().backward()
    yield "input gradient norm", relative(x.grad.norm().item(), facts["input_grad_norm"], 1e-4)
    if "input_grad" in stored:
        whole = x.grad.shape == stored["input_grad"].shape
        part = x.grad if whole else sliced(x.grad, facts["slicing"])
        yield "input gradient", apart(part, stored["input_grad"])
    norms = {ours(key): norm for key, norm in facts["param_grad_norms"].items()}
    for name, parameter in module.named_parameters():
        yield f"gradient of {name}", relative(parameter.grad.norm().item(), norms[name], 1e-3)
    if "output_train_mode" in stored:
        module.load_state_dict(weights)
        output = getattr(module.train(), method)(fixture.input())
        part = sliced(output, facts["slicing"])
        yield "output in training", apart(part, stored["output_train_mode"])
