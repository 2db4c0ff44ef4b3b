"""The Prometheus output: who may ask."""

from __future__ import annotations

import base64
import re
import threading

import pytest
import trio
from scraping import answers, request
from trio.testing import wait_all_tasks_blocked

from trio_statskeeper._http import _basic_auth
from trio_statskeeper.prometheus import PrometheusExporter, hash_password

# scrypt's fastest; by another implementation than Python's.
FAST = "$scrypt$ln=1,r=1,p=1${}${}"
PASSWORD = "pass:wörd"  # noqa: S105


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(_basic_auth, "_LOG2_N", 1)


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def get(authorization=None, path="/metrics"):
    headers = [] if authorization is None else [f"Authorization: {authorization}"]
    return request(path, "GET", *headers)


@pytest.fixture
def exporter():
    return PrometheusExporter(users={"prométheus": hash_password(PASSWORD)})


async def status(exporter, *requests):
    return [status for status, _, _ in await answers(exporter, *requests)]


@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy", "/x"])
async def test_without_a_password_nothing_can_be_had(exporter, path):
    [(status, headers, body)] = await answers(exporter, get(path=path))
    assert (status, body) == (401, b"Unauthorized\n")
    challenge = b'Basic realm="metrics", charset="UTF-8"'
    assert headers[b"www-authenticate"] == challenge


async def test_with_the_right_password_all_can_be_had(exporter):
    right = basic("prométheus", PASSWORD)
    as_others_write_it = right.replace("Basic", "bASIC ")
    assert await status(
        exporter, get(right), get(as_others_write_it), get(right, "/"), get(right, "/x")
    ) == [200, 200, 200, 404]


@pytest.mark.parametrize(
    "authorization",
    [
        basic("prométheus", "wrong"),
        basic("prométheus", ""),
        basic("prometheus", PASSWORD),
        basic("", PASSWORD),
        "",
        "Basic",
        "Basic ",
        "Basic =",
        "Basic a",
        "Basic a b",
        "Basic \xff",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + "A" * 8_000,
        "Bearer " + base64.b64encode(b"x:y").decode(),
        f"{basic('prométheus', PASSWORD)}\r\nAuthorization: x",
    ],
)
async def test_with_anything_else_nothing_can_be_had(exporter, authorization):
    assert await status(exporter, get(authorization), get(authorization)) == [401, 401]


@pytest.fixture
def checked(monkeypatch):
    """The passwords that are checked."""
    checked = []
    digest = _basic_auth._Scrypt.digest

    def noted(scrypt, password, size):
        checked.append(password)
        assert threading.current_thread() is not threading.main_thread()
        return digest(scrypt, password, size)

    monkeypatch.setattr(_basic_auth._Scrypt, "digest", noted)
    return checked


async def test_a_password_is_checked_once_whether_right_or_wrong(exporter, checked):
    right, wrong = basic("prométheus", PASSWORD), basic("prométheus", "x")
    assert await status(exporter, *[get(right), get(wrong)] * 3) == [200, 401] * 3
    assert checked == [PASSWORD.encode(), b"x"]


async def test_an_unknown_user_takes_as_long_as_a_wrong_password(exporter, checked):
    unknown = basic("x", PASSWORD)
    assert await status(exporter, get(unknown), get(unknown)) == [401, 401]
    assert checked == [PASSWORD.encode()]


async def test_only_so_many_wrong_passwords_are_remembered(exporter, checked):
    auth = _basic_auth.BasicAuth(exporter.users)
    passwords = [str(number) for number in range(150)]
    for password in passwords:
        assert not await auth.allows(basic("x", password))
    assert len(auth._rejected) == 100
    assert await auth.allows(basic("prométheus", PASSWORD))
    checked.clear()
    for password in "149", "50", "49":
        assert not await auth.allows(basic("x", password))
    assert checked == [b"49"]


async def test_no_password_is_remembered_in_the_clear(exporter):
    auth = _basic_auth.BasicAuth(exporter.users)
    for password in PASSWORD, "another":
        await auth.allows(basic("prométheus", password))
    for digest in {*auth._accepted, *auth._rejected}:
        assert len(digest) == 64
    again = _basic_auth.BasicAuth(exporter.users)
    await again.allows(basic("prométheus", PASSWORD))
    assert again._accepted.isdisjoint(auth._accepted)


@pytest.fixture
def stuck(monkeypatch):
    """An event that ends all checks, and how many there are."""
    event, checks = threading.Event(), []

    def wait(hash_, password):
        checks.append(password)
        assert event.wait(30)
        return password == PASSWORD.encode()

    monkeypatch.setattr(_basic_auth._Hash, "matches", wait)
    yield event, checks
    event.set()


async def test_one_password_is_checked_at_a_time_and_those_who_are_known_need_not_wait(
    exporter, stuck, nursery
):
    event, checks = stuck
    auth = _basic_auth.BasicAuth(exporter.users)
    right = basic("prométheus", PASSWORD)
    allowed = []

    async def ask(authorization):
        allowed.append(await auth.allows(authorization))

    event.set()
    await ask(right)
    event.clear()
    for password in "abba":
        nursery.start_soon(ask, basic("x", password))
    await wait_all_tasks_blocked()
    while len(checks) < 2:
        await trio.sleep(0.001)
    await ask(right)
    assert (allowed, len(checks)) == ([True, True], 2)
    event.set()
    while len(allowed) < 6:
        await trio.sleep(0.001)
    assert allowed[2:] == [False] * 4
    assert sorted(checks[1:]) == [b"a", b"b"]


async def test_a_check_that_is_cancelled_ends_at_once_and_keeps_its_thread(exporter, stuck):
    event, checks = stuck
    auth = _basic_auth.BasicAuth(exporter.users)
    for password in "a", "b":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auth.allows, basic("x", password))
            await wait_all_tasks_blocked()
            while not checks:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert checks == [b"a"]
    event.set()
    assert await auth.allows(basic("prométheus", PASSWORD))


async def test_a_check_that_fails_is_no_end_of_the_server(exporter, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_basic_auth._Hash, "matches", fail)
    assert await status(exporter, get(basic("x", "y")), get()) == [500, 401]
    assert "can't start new thread" in caplog.text


# Hashes


def test_a_hash_says_how_it_is_computed_and_has_a_salt(monkeypatch):
    monkeypatch.undo()
    hashes = [hash_password("password") for _ in range(2)]
    for text in hashes:
        assert re.fullmatch(
            r"\$scrypt\$ln=14,r=8,p=1\$[\w+/]{22}\$[\w+/]{43}", text, re.ASCII
        )
    assert hashes[0] != hashes[1]


async def test_hashes_of_other_programs_are_understood():
    # A test vector of RFC 7914: https://www.rfc-editor.org/rfc/rfc7914#section-12
    digest = bytes.fromhex(
        "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
        "2eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640"
    )
    salt, encoded = (base64.b64encode(part).decode() for part in (b"NaCl", digest))
    text = f"$scrypt$ln=10,r=8,p=16${salt.rstrip('=')}${encoded.rstrip('=')}"
    exporter = PrometheusExporter(users={"a": text})
    assert await status(exporter, get(basic("a", "password"))) == [200]


def test_a_password_must_be_a_string():
    with pytest.raises(TypeError, match="password must be a string, got bytes"):
        hash_password(b"secret")


SALT = "c2FsdA"


@pytest.mark.parametrize(
    ("users", "error", "message"),
    [
        ("prometheus:secret", TypeError, "users must be a mapping or None, got str"),
        ({}, ValueError, "users must have a user, or be None"),
        ({"a": "secret"}, ValueError, "user 'a': its password must be given as a hash by"),
        ({"a": b"secret"}, TypeError, "user 'a': the hash must be a string, got bytes"),
        ({1: FAST.format(SALT, SALT)}, TypeError, "user 1: expected a string, got 1"),
        ({"a:b": FAST.format(SALT, SALT)}, ValueError, "user 'a:b': the name must be"),
        ({"a\n": FAST.format(SALT, SALT)}, ValueError, r"user 'a\n': the name must be"),
        ({"\udcff": FAST.format(SALT, SALT)}, ValueError, "the name must be printable"),
        ({"a": FAST.format(SALT, "secre")}, ValueError, "user 'a': its hash is damaged: "),
        ({"a": "$scrypt$ln=0,r=8,p=1$c2FsdA$c2Vj"}, ValueError, "got ln=0,r=8,p=1"),
        ({"a": "$scrypt$ln=1,r=0,p=1$c2FsdA$c2Vj"}, ValueError, "got ln=1,r=0,p=1"),
        ({"a": "$scrypt$ln=1,r=1,p=0$c2FsdA$c2Vj"}, ValueError, "got ln=1,r=1,p=0"),
        ({"a": "$scrypt$ln=1,r=1,p=17$c2FsdA$c2Vj"}, ValueError, "p must be from 1 to 16"),
        ({"a": "$scrypt$ln=17,r=8,p=1$c2FsdA$c2Vj"}, ValueError, "at most 64 MiB"),
        ({"a": "$scrypt$ln=16,r=9,p=1$c2FsdA$c2Vj"}, ValueError, "at most 64 MiB"),
        ({"a": "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5"}, ValueError, "must be given as"),
    ],
)
def test_users_are_validated_and_nothing_secret_is_shown(users, error, message):
    with pytest.raises(error, match=re.escape(message)) as raised:
        PrometheusExporter(users=users)
    assert "sec" not in str(raised.value)
    assert "c2Vj" not in str(raised.value)


def test_a_repr_does_not_show_hashes(exporter):
    assert "scrypt" not in repr(exporter)
