"""Newcomers that wait for a place, as threads of this process."""

import json
import socket
import threading
import time

import pytest

from mlx_gpt.distributed.elastic import Place
from mlx_gpt.distributed.rendezvous import Rendezvous, free_address, wait_for_place
from mlx_gpt.errors import GroupFailed, UserError


@pytest.fixture
def listening():
    """The address of a rendezvous with room for one newcomer, and the rendezvous."""
    address = free_address("127.0.0.1")
    rendezvous = Rendezvous(address, 1)
    yield address, rendezvous
    rendezvous.close()


def connected(address, greeting):
    """Returns a connection that has sent a greeting."""
    host, port, _ = address.split(":")
    peer = socket.create_connection((host, int(port)))
    peer.sendall(greeting)
    return peer


def until(holds):
    """Waits until a condition holds, for at most 10 s."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_newcomer_gets_its_place_and_one_too_many_is_refused(listening):
    address, rendezvous = listening
    found = []
    waiting = threading.Thread(target=lambda: found.append(wait_for_place(address)))
    waiting.start()
    until(rendezvous.waiting)
    with pytest.raises(GroupFailed, match="there are no more"):
        wait_for_place(address)
    [newcomer] = rendezvous.waiting()
    place = Place(rank=1, hosts=[["127.0.0.1:5000"], [newcomer]], min_ranks=1)
    rendezvous.invite({newcomer: place})
    waiting.join()
    assert str(found[0]) == "joining as rank 1 of 2"
    assert found[0].environment == place.change("").environment


def test_strangers_do_not_wait_and_newcomers_that_are_gone_do_not_either(listening):
    address, rendezvous = listening
    greeting = {"token": address.split(":")[2], "address": "127.0.0.1:1"}
    wrong = [b"GET / HTTP/1.1\r\n", b"[]\n", b"{}\n", json.dumps(greeting | {"address": 1}).encode() + b"\n"]
    wrong += [json.dumps(greeting | {"token": token}).encode() + b"\n" for token in ("wrong", 1, "\u00e9")]
    for line in wrong:
        with connected(address, line) as peer:
            assert peer.recv(1) == b"" and not rendezvous.waiting()
    with connected(address, json.dumps(greeting).encode() + b"\n"):
        until(rendezvous.waiting)
    until(lambda: not rendezvous.waiting())


def test_an_address_that_is_wrong_is_named(listening):
    address, rendezvous = listening
    for wrong in ("", "127.0.0.1", "127.0.0.1:5000", ":1:t", "127.0.0.1:x:t"):
        with pytest.raises(UserError, match="is not HOST:PORT:TOKEN"):
            wait_for_place(wrong)
    with pytest.raises(GroupFailed, match="the run has ended, or the token is wrong"):
        wait_for_place(address + "0")
    rendezvous.close()
    with pytest.raises(GroupFailed, match="--join 127.0.0.1:[0-9]+: .*check that the run still goes on"):
        wait_for_place(address)
