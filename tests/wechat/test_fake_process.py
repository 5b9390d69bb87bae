"""The fake as a process: it says when it listens, and ends with whoever started it."""

import os
import select
import signal
import socket
import subprocess
import sys
import urllib.parse

import httpx2
import psutil
import pytest

from app.wechat.fake.demo import DEMO_APP_ID, DEMO_APP_SECRET
from app.wechat.fake.process import FakeWeChatNotStartedError, FakeWeChatProcess

END_TIMEOUT_SECONDS = 15
STARTER = """
import signal
from app.wechat.fake.process import FakeWeChatProcess
print(FakeWeChatProcess.start().pid, flush=True)
signal.pause()
"""


def sign_in(base_url: str, code: str) -> object:
    params = {
        "appid": DEMO_APP_ID,
        "secret": DEMO_APP_SECRET,
        "js_code": code,
        "grant_type": "authorization_code",
    }
    with httpx2.Client(trust_env=False) as phone:
        return phone.get(f"{base_url}/sns/jscode2session", params=params).json()["openid"]


def test_it_accepts_as_soon_as_its_address_is_known_and_is_gone_after_stop() -> None:
    with FakeWeChatProcess.start() as fake:
        assert sign_in(fake.base_url, "demo-a") == "demo-a"
        pid = fake.pid
    assert not psutil.pid_exists(pid)
    fake.stop()


def test_a_port_that_is_taken_is_told_at_once() -> None:
    with FakeWeChatProcess.start() as fake:
        port = urllib.parse.urlsplit(fake.base_url).port
        assert port is not None
        with pytest.raises(FakeWeChatNotStartedError):
            FakeWeChatProcess.start(port=port)


def test_it_ends_with_a_starter_that_was_killed() -> None:
    starter = subprocess.Popen(  # noqa: S603 - our own interpreter and words
        [
            sys.executable,
            "-c",
            STARTER,
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert starter.stdout is not None
        fake = psutil.Process(int(starter.stdout.readline()))
    finally:
        starter.kill()
        starter.wait()
        if starter.stdout is not None:
            starter.stdout.close()
    fake.wait(END_TIMEOUT_SECONDS)


def test_it_ends_without_complaint_when_nobody_is_left_to_hear_its_port() -> None:
    hears, tells = os.pipe()
    os.close(hears)
    fake = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "app.wechat.fake", "--lifeline", f"--announce-fd={tells}"],
        pass_fds=[tells],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(tells)
    # Its lifeline ends at once, too.
    _, complaint = fake.communicate(timeout=END_TIMEOUT_SECONDS)
    assert (fake.returncode, complaint) == (0, "")


def test_sigterm_ends_it_although_a_slow_code_is_in_flight() -> None:
    with FakeWeChatProcess.start() as fake:
        host, port = urllib.parse.urlsplit(fake.base_url).netloc.split(":")
        request = (
            f"GET /sns/jscode2session?appid={DEMO_APP_ID}&secret={DEMO_APP_SECRET}"
            "&grant_type=authorization_code&js_code=slow-10000 HTTP/1.1\r\nhost: x\r\n\r\n"
        )
        with socket.create_connection((host, int(port))) as phone:
            phone.sendall(request.encode())
            # It has read the request once a second one on another connection is answered.
            assert sign_in(fake.base_url, "demo-a") == "demo-a"
            os.kill(fake.pid, signal.SIGTERM)
            readable, _, _ = select.select([phone], [], [], 6)
            assert readable


def test_without_an_announcement_descriptor_it_prints_its_address() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "app.wechat.fake", "--lifeline"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        base_url = process.stdout.readline().decode().strip()
        assert sign_in(base_url, "demo-b") == "demo-b"
        process.stdin.close()
        process.stdin = None
        assert process.wait(END_TIMEOUT_SECONDS) == 0
