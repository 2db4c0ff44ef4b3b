"""The labels of exports: rule 8."""

from __future__ import annotations

import trio
from helpers import make_keeper, one, running

from trio_statskeeper import Endpoint


async def test_labels_are_ptype_probe_dst_then_the_additional_ones_in_order(
    autojump_clock,
):
    keeper = make_keeper(
        targets=lambda: [
            Endpoint("a", 80, {"zone": "z1", "a.b": "c"}),
            Endpoint("b", labels={}),
        ],
        additional_labels={
            "zone": "@target.label.zone@",
            "env": "prod",
            "name": "@target.name@",
            "port": "@target.port@",
            "dotted": "@target.label.a.b@",
            "mail": "ops@target.example",
            "upper": lambda endpoint: endpoint.name.upper(),
        },
    )
    async with running(keeper) as run:
        run.send(one("a:80"), one("b"))
        await trio.sleep(1.5)
        a, b = run.received()
    assert list(a.labels.items()) == [
        ("ptype", "http"),
        ("probe", "homepage"),
        ("dst", "a:80"),
        ("zone", "z1"),
        ("env", "prod"),
        ("name", "a"),
        ("port", "80"),
        ("dotted", "c"),
        ("mail", "ops@target.example"),
        ("upper", "A"),
    ]
    assert (b.labels["zone"], b.labels["port"]) == ("", "")


async def test_labels_are_computed_at_each_export(autojump_clock):
    zones = iter(["z1", "z2"])
    racks = iter(["r1", "r2"])
    keeper = make_keeper(
        targets=lambda: [Endpoint("a", labels={"zone": next(zones, "z0")})],
        additional_labels={
            "zone": "@target.label.zone@",
            "rack": lambda _: next(racks),
        },
    )
    async with running(keeper) as run:
        run.send(one("a"))
        await trio.sleep(2.5)
        first, second = run.received()
    assert (first.labels["zone"], first.labels["rack"]) == ("z2", "r1")
    assert (second.labels["zone"], second.labels["rack"]) == ("z0", "r2")
