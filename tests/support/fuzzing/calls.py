"""Targets that are called with values: texts, gates, functions, networks."""

import inspect
from functools import partial
from typing import Any

import torch
from torch import nn

import gatewise as gw
from gatewise.gates import functional
from gatewise.gates.spec import parse_gates, parse_gates_list, parse_value
from gatewise.models.families import FAMILIES
from gatewise.training import Recipe
from support.fuzzing.base import TINY
from support.fuzzing.box import Box
from support.fuzzing.target import Call, target

_TEXTS = (
    "resnet20+gct:mode=l1@before_conv", "resnet18_cifar:width=8+gct", "gct:mode=l1,eps=1e-4@inner", "none,se,gct:mode=l1,eps=1e-4,gc",
    "se:rd_ratio=1/16+gct", "gaternet:sites=inner,budget=0.5,gater=light", "ge:map_size=7x8,learned=true", "resnet20_wider:parameters=3000",
)  # fmt: skip
_SMALL = {"none": TINY, "gct": f"{TINY}+gct"}


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))


@target(90)
def text_of_a_spec(box: Box) -> Call:
    hostile, rng = box.hostile, box.rng
    text = hostile.changed_text(rng.choice(_TEXTS)) if rng.random() < 0.8 else hostile.word()
    call = rng.choice((gw.ModelSpec.parse, gw.GateChoice.parse, parse_gates, parse_gates_list, parse_value))
    return lambda: str(call(text))


@target(60)
def values_of_a_spec(box: Box) -> Call:
    rng = box.rng
    if rng.random() < 0.5:
        values = box.hostile.changed_json(
            gw.ModelSpec.parse(rng.choice(("resnet20+gct:mode=l1@inner", "u2net"))).to_dict()
        )
        return lambda: gw.ModelSpec.from_dict(values)
    arguments = [box.hostile.value() for _ in range(rng.randrange(1, 4))]
    return lambda: gw.GateChoice(*arguments)


@target(80)
def recipe_from_values(box: Box) -> Call:
    names = list(inspect.signature(Recipe).parameters)
    options = box.hostile.options(names)
    if box.rng.random() < 0.3:
        options = {name: box.hostile.plain() for name in box.rng.sample(names, 2)}
    return lambda: Recipe(**options)


@target(140)
def gate_by_name(box: Box) -> Call:
    hostile, rng = box.hostile, box.rng
    name = rng.choice(gw.gate_names()) if rng.random() < 0.95 else hostile.value()
    known = list(gw.gate_spec(name).options) if isinstance(name, str) and name in gw.gate_names() else ["eps"]
    options = hostile.options(known if rng.random() < 0.95 else [*known, "no_such"])
    channels = rng.choice((1, 4, 7, 8)) if rng.random() < 0.7 else hostile.value()
    small = type(channels) is int and 0 < channels < 9
    x = torch.zeros(2, channels, 6, 6) if small and rng.random() < 0.5 else hostile.tensor()

    def call() -> None:
        gate = gw.make_gate(name, channels, **options)
        gate(x)

    return call


@target(60)
def primitive(box: Box) -> Call:
    functions = [
        functional.average_pool, functional.attention_weights, functional.attention_pool, functional.semhash,
        functional.gumbel_sigmoid, functional.hard_sigmoid_gate, functional.straight_through, functional.spatial_axes,
        functional.at_least_float32,
    ]  # fmt: skip
    call = box.rng.choice(functions)
    count = sum(p.default is p.empty for p in inspect.signature(call).parameters.values())
    first = box.hostile.tensor() if box.rng.random() < 0.8 else box.hostile.value()
    others = [first if box.rng.random() < 0.6 else box.hostile.value() for _ in range(count - 1)]
    return lambda: call(first, *others)


_OF_NETWORKS = (
    gw.gates_in, gw.parameter_groups, gw.train_only_gates, gw.train_everything, gw.gate_loss, gw.gate_pruners, gw.find_places,
    gw.GaterNet, gw.compact, gw.skip_closed_filters, gw.load_weights, gw.convert_weights, gw.insert_gates, gw.fine_tuning_stages,
    gw.make_segmenter, gw.make_model, gw.load_model, gw.gate_spec, gw.ContextPlace, gw.Stage, gw.analysis.GateStats,
)  # fmt: skip


@target(60)
def any_public_call(box: Box) -> Call:
    call = box.rng.choice(_OF_NETWORKS)
    parameters = inspect.signature(call).parameters.values()
    count = sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty]
    required = {p.name: box.hostile.value() for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    if call is gw.compact:
        named = []
    first = [_net()] if box.rng.random() < 0.6 else [box.hostile.value()]
    arguments = [*first, *(box.hostile.value() for _ in range(count - 1))][:count]
    options = {**required, **box.hostile.options(named, 2)}
    return lambda: call(*arguments, **options)


@target(50)
def inserted_gates(box: Box) -> Call:
    hostile, rng = box.hostile, box.rng
    gate = rng.choice(("gct", "se", "gct@inner", "gc@stage_end")) if rng.random() < 0.7 else hostile.value()
    names = ["place", "before", "after", "include", "exclude", "where", "example", "mode", "rd_ratio"]
    options = {key: value for key, value in hostile.options(names, 2).items() if key != "where" or not callable(value)}

    def call() -> None:
        net = _net()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        try:
            gw.insert_gates(net, gate, **options).undo()
        finally:
            after = net.state_dict()
            assert list(before) == list(after), "a failed insertion has left something in the network"

    return call


@target(60)
def network_by_name(box: Box) -> Call:
    hostile, rng = box.hostile, box.rng
    name = rng.choice((
        TINY,
        f"{TINY}+gct@inner",
        "resnet20",
        "resnet18_cifar:width=4",
        "u2net_small",
        "resnet20_wider",
        "resnet10t",
    ))
    spec: Any = name if rng.random() < 0.6 else hostile.changed_text(name) if rng.random() < 0.7 else hostile.value()
    known = (
        list(FAMILIES[name.partition(":")[0]].options)
        if name.partition(":")[0] in FAMILIES
        else ["drop_rate", "num_classes", "in_chans"]
    )
    options = hostile.options([*known, "image_size", "seed", "width"], 2)
    return lambda: gw.make_model(spec, **options)


@target(16)
def gater_around_a_network(box: Box) -> Call:
    hostile, rng = box.hostile, box.rng
    names = [p.name for p in inspect.signature(gw.GaterNet).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = hostile.options(names, 2)
    options = {
        key: value for key, value in options.items() if not callable(value)
    }  # errors of other packages pass through
    backbone = _net() if rng.random() < 0.9 else hostile.value()
    x = torch.zeros(2, 3, 8, 8)  # torch's own error for an image that a backbone cannot take
    gates = None if rng.random() < 0.4 else hostile.value()

    def call() -> None:
        net = gw.GaterNet(backbone, **{"image_size": (8, 8), **options}).eval()
        net(x, gates=gates)

    return call


@target(20)
def forced_gates(box: Box) -> Call:
    x = torch.zeros(2, 3, 8, 8)
    gates = box.hostile.value()
    net = _gated()
    call = box.rng.choice((net, net.forward_with_gates, partial(net, gates=gates), lambda _: net.executed_macs(gates)))
    return lambda: call(x)


_KEPT: list[Any] = []


def _gated() -> Any:
    if not _KEPT:
        _KEPT.append(gw.GaterNet(_net(), image_size=(8, 8)).eval())
    return _KEPT[0]


@target(12)
def stages(box: Box) -> Call:
    arguments = [box.hostile.value() if box.rng.random() < 0.7 else box.rng.randrange(4) for _ in range(2)]
    return lambda: gw.fine_tuning_stages(*arguments)
