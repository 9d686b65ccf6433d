"""Newcomers that wait for a place, as threads of this process."""

import json
import socket
import threading
import time

import pytest

from mlx_gpt.distributed import rendezvous
from mlx_gpt.distributed.elastic import Place, places
from mlx_gpt.distributed.rendezvous import Rendezvous, free_address, meet, wait_for_place
from mlx_gpt.errors import GroupFailed, UserError
from mlx_gpt.run.request import ignore


@pytest.fixture
def listening():
    """The address of a rendezvous with room for one newcomer, and the rendezvous."""
    address = free_address("127.0.0.1")
    open_one = Rendezvous(address, 1)
    yield address, open_one
    open_one.close()


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
    address, open_one = listening
    found = []
    waiting = threading.Thread(target=lambda: found.append(wait_for_place(address, ignore)))
    waiting.start()
    until(open_one.waiting)
    with pytest.raises(GroupFailed, match="there are no more"):
        wait_for_place(address, ignore)
    [newcomer] = open_one.waiting()
    place = Place(rank=1, hosts=[["127.0.0.1:5000"], [newcomer]], min_ranks=1, address=address)
    open_one.invite({newcomer: place})
    waiting.join()
    assert str(found[0]) == "joining as rank 1 of 2"
    assert found[0].environment == place.change("").environment


@pytest.mark.parametrize("lost", [False, True])
def test_processes_that_start_again_meet_and_one_that_does_not_gets_no_place(monkeypatch, lost):
    monkeypatch.setattr(rendezvous, "START_SECONDS", 0.5 if lost else 60)
    given = places([["127.0.0.1:1"], ["127.0.0.1:2"], ["127.0.0.1:3"]], [0, 1, 2], [], 2, free_address("127.0.0.1"))
    found = []
    meeting = [threading.Thread(target=lambda p=p: found.append(meet(p))) for p in given if p.rank != 1 or not lost]
    for thread in meeting:
        thread.start()
    for thread in meeting:
        thread.join()
    expected = places(given[0].hosts, [0, 2], [], 2, given[0].address) if lost else given
    assert sorted(found, key=lambda place: place.rank) == expected


def test_too_few_processes_that_start_again_end(monkeypatch):
    monkeypatch.setattr(rendezvous, "START_SECONDS", 0)
    place = Place(rank=0, hosts=[["127.0.0.1:1"], ["127.0.0.1:2"]], min_ranks=2, address=free_address("127.0.0.1"))
    with pytest.raises(GroupFailed, match="only 1 of 2 processes have started again, but train.min_ranks is 2"):
        meet(place)


def test_strangers_do_not_wait_and_newcomers_that_are_gone_do_not_either(listening):
    address, open_one = listening
    greeting = {"token": address.split(":")[2], "address": "127.0.0.1:1"}
    wrong = [b"GET / HTTP/1.1\r\n", b"[]\n", b"{}\n", json.dumps(greeting | {"address": 1}).encode() + b"\n"]
    wrong += [json.dumps(greeting | {"token": token}).encode() + b"\n" for token in ("wrong", 1, "\u00e9")]
    for line in wrong:
        with connected(address, line) as peer:
            assert peer.recv(1) == b"" and not open_one.waiting()
    with connected(address, json.dumps(greeting).encode() + b"\n"):
        until(open_one.waiting)
    until(lambda: not open_one.waiting())


def test_an_address_that_is_wrong_is_named(listening, monkeypatch):
    monkeypatch.setattr(rendezvous, "CONNECT_SECONDS", 0.2)
    address, open_one = listening
    for wrong in ("", "127.0.0.1", "127.0.0.1:5000", ":1:t", "127.0.0.1:x:t", "127.0.0.1:65536:t"):
        with pytest.raises(UserError, match="is not HOST:PORT:TOKEN"):
            wait_for_place(wrong, ignore)
    with pytest.raises(GroupFailed, match="does not answer at 127.0.0.1:[0-9]+: .* its token is wrong"):
        wait_for_place(address + "0", ignore)
    open_one.close()
    with pytest.raises(GroupFailed, match="does not answer at 127.0.0.1:[0-9]+: the run has ended"):
        wait_for_place(address, ignore)
