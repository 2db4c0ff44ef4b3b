"""Endpoints, and the targets of keepers and probers."""

from __future__ import annotations

from enum import IntEnum, StrEnum

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError

from trio_statskeeper import Endpoint
from trio_statskeeper._endpoint import targets_function


class Host(StrEnum):
    A = "a"


class Port(IntEnum):
    HTTP = 80


# Endpoint


def test_an_endpoint_needs_only_a_name():
    endpoint = Endpoint("a")
    assert (endpoint.name, endpoint.port, dict(endpoint.labels)) == ("a", None, {})


@pytest.mark.parametrize(
    ("name", "port", "key"),
    [
        ("host.example.com", None, "host.example.com"),
        ("host.example.com", 80, "host.example.com:80"),
        ("host.example.com", 0, "host.example.com:0"),
        ("192.0.2.1", 65535, "192.0.2.1:65535"),
        ("2001:db8::1", None, "2001:db8::1"),
        ("2001:db8::1", 80, "[2001:db8::1]:80"),
        ("::1", 0, "[::1]:0"),
        ("[2001:db8::1]", None, "[2001:db8::1]"),
        ("[2001:db8::1]", 80, "[2001:db8::1]:80"),
        ("http://host/", None, "http://host/"),
        (" ", None, " "),
    ],
)
def test_the_key_is_the_name_and_the_port_if_any(name, port, key):
    assert Endpoint(name, port).key == key


def test_the_key_is_not_an_argument():
    assert attrs.evolve(Endpoint("a", 80), port=443).key == "a:443"
    with pytest.raises(TypeError):
        Endpoint("a", key="b")


def test_the_name_of_an_endpoint_is_not_empty():
    with pytest.raises(ValueError, match=r"^an endpoint's name can't be empty$"):
        Endpoint("")


@pytest.mark.parametrize("name", [None, 1, b"a", ["a"]])
def test_the_name_of_an_endpoint_is_a_string(name):
    with pytest.raises(TypeError, match="expected a string, got"):
        Endpoint(name)


@pytest.mark.parametrize("port", ["80", 80.0, True, b"80"])
def test_the_port_of_an_endpoint_is_an_integer(port):
    with pytest.raises(TypeError, match=f"port must be an integer .* got {port!r}"):
        Endpoint("a", port)


@pytest.mark.parametrize("port", [-1, 65536, 10**30])
def test_the_port_of_an_endpoint_is_from_0_to_65535(port):
    with pytest.raises(ValueError, match=f"from 0 to 65535, got {port}"):
        Endpoint("a", port)


@pytest.mark.parametrize("labels", [{"zone": 1}, {"zone": None}, {1: "b"}, {b"zone": "b"}])
def test_the_labels_of_an_endpoint_are_strings(labels):
    with pytest.raises(TypeError, match="expected a string, got"):
        Endpoint("a", labels=labels)


@pytest.mark.parametrize("labels", [None, ["ab"], "ab"])
def test_labels_that_are_not_a_mapping_are_refused(labels):
    with pytest.raises(TypeError, match="labels must be a mapping, got "):
        Endpoint("a", labels=labels)


def test_an_endpoint_copies_its_labels():
    labels = {"zone": "b"}
    endpoint = Endpoint("a", labels=labels)
    labels["zone"] = "c"
    labels["rack"] = "1"
    assert endpoint.labels == {"zone": "b"}


def test_the_labels_of_an_endpoint_are_read_only():
    with pytest.raises(TypeError):
        Endpoint("a", labels={"zone": "b"}).labels["zone"] = "c"


@pytest.mark.parametrize("field", ["name", "port", "labels", "key"])
def test_an_endpoint_is_frozen(field):
    endpoint = Endpoint("a")
    with pytest.raises(FrozenInstanceError):
        setattr(endpoint, field, getattr(endpoint, field))


def test_an_endpoint_holds_plain_strings_and_numbers():
    endpoint = Endpoint(Host.A, Port.HTTP, {Host.A: Host.A})
    ((label, value),) = endpoint.labels.items()
    kept = (endpoint.name, endpoint.port, label, value)
    assert [type(one) for one in kept] == [str, int, str, str]
    assert endpoint == Endpoint("a", 80, {"a": "a"})


def test_equal_endpoints_have_equal_hashes():
    one, same = Endpoint("a", 80, {"zone": "b"}), Endpoint("a", 80, {"zone": "b"})
    assert one == same
    assert hash(one) == hash(same)


@pytest.mark.parametrize(
    "other",
    [
        Endpoint("b", 80, {"zone": "b"}),
        Endpoint("a", 443, {"zone": "b"}),
        Endpoint("a", None, {"zone": "b"}),
        Endpoint("a", 80, {"zone": "c"}),
        Endpoint("a", 80),
    ],
)
def test_endpoints_with_other_names_ports_or_labels_differ(other):
    assert Endpoint("a", 80, {"zone": "b"}) != other


def test_endpoints_with_the_same_key_may_differ():
    one, other = Endpoint("::1", 80), Endpoint("[::1]", 80)
    assert one.key == other.key
    assert one != other


def test_endpoints_without_labels_share_one_empty_mapping():
    assert Endpoint("a").labels is Endpoint("b", labels={}).labels


# Targets of keepers and probers


def test_a_function_that_returns_targets_is_kept():
    def targets() -> list[Endpoint]:
        return [Endpoint("a")]

    assert targets_function(targets) is targets


def test_a_sequence_of_targets_is_copied():
    listed = [Endpoint("a"), Endpoint("b")]
    targets = targets_function(listed)
    listed.clear()
    assert list(targets()) == [Endpoint("a"), Endpoint("b")]


@pytest.mark.parametrize("targets", ["a", Endpoint("a"), None, {Endpoint("a")}])
def test_targets_are_a_function_or_a_sequence(targets):
    with pytest.raises(TypeError, match="targets must be a sequence of Endpoints, or"):
        targets_function(targets)


def test_an_item_that_is_not_an_endpoint_is_refused_and_quoted():
    with pytest.raises(TypeError, match="targets must be Endpoints, got 'b'"):
        targets_function([Endpoint("a"), "b"])
