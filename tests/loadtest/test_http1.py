import asyncio
import resource

import pytest

from loadtest.http1 import (
    BadAddressError,
    Network,
    NoAnswerError,
    NoConnectionError,
    Phone,
    TooFewFilesError,
    raise_file_limit,
)
from tests.loadtest.scripted_server import Conversation, plain, scripted_server

pytestmark = pytest.mark.anyio


async def _echo(conversation: Conversation) -> None:
    while True:
        request = await conversation.read_request()
        await conversation.send(plain(request))


async def test_one_phone_keeps_one_connection_for_all_its_requests() -> None:
    async with scripted_server(_echo) as server, Network(server.base_url) as network:
        phone = Phone(network)
        for number in range(20):
            answer = await phone.request("PUT", f"/v1/{number}", {"X-Number": str(number)}, b'{"n":1}')
            assert answer.status == 200
            assert answer.body.startswith(b"PUT /v1/%d HTTP/1.1\r\n" % number)
            assert b"X-Number: %d\r\n" % number in answer.body
            assert answer.body.endswith(b'\r\n\r\n{"n":1}')
            assert 0 < answer.elapsed_seconds < 5
        assert len(server.conversations) == 1


async def test_a_hundred_phones_talk_at_once_and_each_hears_its_own_answer() -> None:
    async with scripted_server(_echo) as server, Network(server.base_url) as network:
        phones = [Phone(network) for _ in range(100)]

        async def talk(number: int) -> None:
            for turn in range(5):
                answer = await phones[number].request("GET", f"/phone/{number}/{turn}")
                assert answer.body.startswith(b"GET /phone/%d/%d " % (number, turn))

        await asyncio.gather(*(talk(number) for number in range(100)))
        assert len(server.conversations) == 100
        assert not network.in_flight


async def test_a_chunked_body_arrives_whole_however_it_is_cut() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nRetry-After: 3\r\n\r\n"
    message = head + b"5\r\nplace\r\n1\r\n \r\n2\r\n17\r\n0\r\n\r\n"

    async def script(conversation: Conversation) -> None:
        while True:
            await conversation.read_request()
            for byte in message:
                await conversation.send(bytes([byte]))

    async with scripted_server(script) as server, Network(server.base_url) as network:
        phone = Phone(network)
        for _ in range(2):
            answer = await phone.request("GET", "/")
            assert answer.body == b"place 17"
            assert answer.headers[b"retry-after"] == b"3"
        assert len(server.conversations) == 1


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async with scripted_server(script) as server, Network(server.base_url) as network:
        answer = await Phone(network).request("GET", "/")
        assert answer.body == b"all of it"


async def test_a_lost_reply_is_an_unknown_outcome_and_the_request_has_arrived() -> None:
    arrived = asyncio.Event()
    hung_up = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.read_request()
        arrived.set()
        if len(server.conversations) == 1:
            assert await conversation.reader.read() == b""
            hung_up.set()
        else:
            await conversation.send(plain(b"again"))

    async with scripted_server(script) as server, Network(server.base_url) as network:
        phone = Phone(network)
        message = network.compose("PUT", "/v1/claims/1", None, b"{}")
        with pytest.raises(NoAnswerError) as cut:
            await phone.send(message, cut_after_seconds=0.0)
        assert cut.value.reason == "cut"
        await arrived.wait()
        await hung_up.wait()
        assert (await phone.send(message)).body == b"again"
        first, second = server.conversations
        assert first.requests == second.requests == [message]


async def test_a_reply_that_is_quicker_than_the_cut_is_lost_all_the_same() -> None:
    async with scripted_server(_echo) as server, Network(server.base_url) as network:
        with pytest.raises(NoAnswerError):
            await Phone(network).send(network.compose("GET", "/"), cut_after_seconds=5.0)


async def test_a_server_that_hangs_up_leaves_an_unknown_outcome() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.send(b"HTTP/1.1 201 Created\r\nContent-Length: 50\r\n\r\nhalf")

    async with scripted_server(script) as server, Network(server.base_url) as network:
        with pytest.raises(NoAnswerError) as closed:
            await Phone(network).request("GET", "/")
        assert closed.value.reason == "closed"


async def test_what_is_not_http_is_an_unknown_outcome() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.send(b"SSH-2.0-OpenSSH\r\n\r\n")
        await conversation.reader.read()

    async with scripted_server(script) as server, Network(server.base_url) as network:
        with pytest.raises(NoAnswerError) as garbled:
            await Phone(network).request("GET", "/")
        assert garbled.value.reason == "garbled"


async def test_a_silent_server_is_given_up_after_the_limit() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.reader.read()

    async with scripted_server(script) as server, Network(server.base_url) as network:
        with pytest.raises(NoAnswerError) as silent:
            await Phone(network, limit_seconds=0.05).request("GET", "/")
        assert silent.value.reason == "timed_out"
        assert not network.in_flight


async def test_a_line_that_the_server_closes_politely_is_dialled_again() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.read_request()
        await conversation.send(plain(b"bye", headers=b"Connection: close\r\n"))

    async with scripted_server(script) as server, Network(server.base_url) as network:
        phone = Phone(network)
        for _ in range(3):
            assert (await phone.request("GET", "/")).body == b"bye"
        assert len(server.conversations) == 3


async def test_where_nobody_listens_nothing_was_sent() -> None:
    async with scripted_server(_echo) as server:
        gone = server.base_url
    async with Network(gone) as network:
        with pytest.raises(NoConnectionError):
            await Phone(network).request("GET", "/")


async def test_a_caller_that_is_cancelled_takes_its_line_with_it() -> None:
    arrived = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.read_request()
        arrived.set()
        await conversation.reader.read()

    async with scripted_server(script) as server, Network(server.base_url) as network:
        phone = Phone(network)
        asking = asyncio.ensure_future(phone.request("GET", "/"))
        await arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not phone.is_connected
        assert not network.in_flight


async def test_leaving_the_network_closes_every_line() -> None:
    async with scripted_server(_echo) as server:
        async with Network(server.base_url) as network:
            phones = [Phone(network) for _ in range(10)]
            for phone in phones:
                await phone.connect()
            assert len(network.open_lines) == 10
        assert not network.open_lines


@pytest.mark.parametrize("address", ["", "ftp://x", "127.0.0.1:8000", "http://"])
async def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadAddressError):
        Network(address)


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        assert raise_file_limit(10) == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_hard_limit_below_the_crowd_is_refused_with_both_numbers() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(TooFewFilesError) as refused:
        raise_file_limit(hard)
    assert str(hard) in str(refused.value)
    assert "ulimit" in str(refused.value)
