"""What arrives on the socket itself: broken HTTP, silence, drips, lies about lengths, readers that do not read."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.qa.live_server import parse_head, read_all, read_answer, small_photo

DEADLINE_S = 2.0


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("--no-ui", "--receive-timeout-s", str(DEADLINE_S), "--max-body-mb", "1")


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /api/predict/ HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"

BROKEN = {
    "no http": b"hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no path": b"GET\r\n\r\n",
    "space in header name": b"GET /livez HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "nul in header": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "negative length": post(b"", "Content-Length: -1"),
    "two lengths": post(b"ab", "Content-Length: 1", "Content-Length: 2"),
    "length in words": post(b"ab", "Content-Length: two"),
    "bad chunk": post(b"zz\r\n", "Transfer-Encoding: chunked"),
    "unknown transfer coding": post(b"x", "Transfer-Encoding: gzip"),
    "line breaks only": b"\r\n" * 40_000,
}


def test_what_is_not_http_is_a_400_in_json_and_the_connection_ends(healthy, subtests):
    for case, answer in at_once(healthy.raw, BROKEN).items():
        with subtests.test(case):
            status, headers = parse_head(answer.partition(b"\r\n\r\n")[0])
            assert status in (400, 408, 501)
            assert headers["connection"] == "close"
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def at_once(ask, cases: dict) -> dict:
    """`ask(value)` for each case, all beside each other: most of the time they wait."""
    with ThreadPoolExecutor(len(cases)) as pool:
        return dict(zip(cases, pool.map(ask, cases.values()), strict=True))


TOO_LONG = {
    "10,000 headers": GET[:-2] + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
    "a header of 100 kB": GET[:-2] + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    "a path of 100 kB": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a query of 100 kB": b"GET /livez?" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def test_a_head_that_is_too_long_is_a_400(healthy, subtests):
    for case, head in TOO_LONG.items():
        with subtests.test(case), healthy.connect() as connection:
            connection.sendall(head)
            status, _, body = read_answer(connection)
            assert status == 400
            assert json.loads(body)["error"]


SLOW = {
    "silence": (b"", None),
    "half a head": (b"POST /api/predict/ HTTP/1.1\r\nHost: loc", None),
    "a dripping head": (b"POST /api/predict/ HTTP/1.1\r\n", b"X"),
    "a missing body": (post(b"", "Content-Length: 100"), 408),
    "half a body": (post(b"x" * 50, "Content-Length: 100"), 408),
    "a dripping body": (post(b"x", "Content-Length: 100000"), 408),
    "an unfinished chunk": (post(b"100\r\nabc", "Transfer-Encoding: chunked"), 408),
    "no last chunk": (post(b"1\r\na\r\n", "Transfer-Encoding: chunked"), 408),
}


def test_a_client_that_does_not_finish_is_let_go_at_the_deadline(healthy, subtests):
    def ask(case: str) -> bytes:
        with healthy.connect(timeout=DEADLINE_S * 10) as connection:
            connection.sendall(SLOW[case][0])
            return drip(connection, DEADLINE_S * 10) if "dripping" in case else read_all(connection)

    for case, answer in at_once(ask, {case: case for case in SLOW}).items():
        with subtests.test(case):
            if SLOW[case][1] == 408:
                assert answer.startswith(b"HTTP/1.1 408")
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def drip(connection: socket.socket, limit_s: float) -> bytes:
    """Send a byte every 50 ms until the server has had enough."""
    connection.settimeout(0.05)
    end = time.monotonic() + limit_s
    answer = b""
    while time.monotonic() < end:
        try:
            connection.sendall(b"x")
            piece = connection.recv(65536)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return answer
        if not piece:
            return answer
        answer += piece
    raise AssertionError("the connection was still open")


def test_a_kept_connection_that_goes_silent_is_closed(healthy):
    with healthy.connect() as connection:
        connection.sendall(GET)
        assert read_answer(connection)[0] == 200
        assert read_all(connection) == b""


def test_each_request_of_a_kept_connection_has_the_whole_deadline(healthy):
    with healthy.connect() as connection:
        for _ in range(4):
            body = b"{}"
            connection.sendall(post(b"", f"Content-Length: {len(body)}"))
            time.sleep(DEADLINE_S / 3)  # not a wait for anything: the pace of a slow but honest client
            connection.sendall(body)
            assert read_answer(connection)[0] == 422


def test_pipelined_requests_are_all_answered(healthy):
    with healthy.connect() as connection:
        connection.sendall(GET * 20)
        data = b""
        while data.count(b'{"status":"alive"}') < 20:
            data += connection.recv(65536)


OFFERS = {
    "http2": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
    "websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13"),
}


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_to_change_protocols_is_declined_and_its_body_is_read(healthy, offer):
    """Java's client and `curl --http2` make one; the parser takes all that follows for the other protocol."""
    with healthy.connect() as connection:
        for _ in range(2):
            connection.sendall(post(b'{"data": 1}', "Content-Length: 11", *OFFERS[offer]))
            status, _, body = read_answer(connection)
            assert status == 422
            assert "data" in json.loads(body)["error"]
        connection.sendall(GET)
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize(
    ("request_line", "connection_header"),
    [(b"GET /livez HTTP/1.1", b"Upgrade, close"), (b"GET /livez HTTP/1.0", b"Upgrade")],
    ids=["closes", "of HTTP/1.0"],
)
def test_an_offer_on_a_connection_that_ends_is_answered(healthy, request_line, connection_header):
    """The parser that has read the last request of a connection reads no rewritten head: nothing came back."""
    head = request_line + b"\r\nHost: 127.0.0.1\r\nConnection: " + connection_header + b"\r\nUpgrade: h2c\r\n\r\n"
    with healthy.connect() as connection:
        connection.sendall(head)
        assert b" 200 OK" in read_all(connection).partition(b"\r\n")[0]


def test_a_body_that_follows_its_offer_later_is_read(healthy):
    with healthy.connect() as connection:
        connection.sendall(post(b"", "Content-Length: 11", *OFFERS["http2"]))
        time.sleep(0.1)  # so that it arrives apart; either way the answer is the same
        connection.sendall(b'{"data": 1}')
        status, _, body = read_answer(connection)
        assert status == 422
        assert "data" in json.loads(body)["error"]


def test_what_follows_a_body_is_no_header(healthy):
    with healthy.connect() as connection:
        connection.sendall(post(b"2\r\n{}\r\n0\r\nX-Request-Id: smuggled\r\n\r\n", "Transfer-Encoding: chunked"))
        status, headers, _ = read_answer(connection)
        assert status == 422
        assert headers["x-request-id"] != "smuggled"


ENDLESS = {
    "a header": (GET[:-2] + b"X: ", b"y"),
    "a path": (b"GET /", b"y"),
    "line breaks": (b"", b"\r\n"),
    "a chunk's extension": (post(b"2;", "Transfer-Encoding: chunked"), b"y"),
    "a trailer": (post(b"2\r\n{}\r\n0\r\nX: ", "Transfer-Encoding: chunked"), b"y"),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_never_ends_and_is_no_body_is_cut_off(healthy, case):
    """Nothing counts it but the protocol: the app's own limits see whole heads and bodies."""
    first, more = ENDLESS[case]
    sent, limit = 0, 50_000_000
    with healthy.connect() as connection:
        connection.sendall(first)
        try:
            while sent < limit:
                connection.sendall(more * 20_000)
                sent += len(more) * 20_000
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < limit


def test_what_is_not_http_does_not_write_into_an_answer_under_way(healthy):
    name, size = "video_20260101_000000_during.mp4", 8_000_000
    (healthy.outputs / name).write_bytes(bytes(size))
    with healthy.connect() as connection:
        connection.sendall(f"GET /outputs/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        received = connection.recv(20_000)
        assert received.startswith(b"HTTP/1.1 200")
        connection.sendall(b"hello\r\n\r\n")
        received += read_all(connection)
    (healthy.outputs / name).unlink()
    assert b"400 Bad Request" not in received


OFFER = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


@pytest.mark.parametrize("one", [GET, OFFER], ids=["plain", "offers"])
def test_a_flood_of_requests_at_once_is_refused_before_it_fills_the_memory(healthy, one):
    """Each waits in memory for its turn, and no guard sees it before that."""
    with healthy.connect() as connection:
        connection.sendall(one * 2000)
        data = read_all(connection)
    assert b"400 Bad Request" in data
    assert data.count(b'{"status":"alive"}') < 2000
    assert "Traceback" not in healthy.log


def test_a_client_may_ask_before_it_sends_its_body(healthy):
    with healthy.connect() as connection:
        connection.sendall(post(b"", "Content-Length: 2", "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"{}")
        assert read_answer(connection)[0] == 422


def test_a_body_declared_too_large_is_refused_unread(healthy):
    with healthy.connect() as connection:
        connection.sendall(post(b"x" * 1000, "Content-Length: 1000001"))
        status, _, body = read_answer(connection)
        assert status == 413
        assert "1 MB" in json.loads(body)["error"]


def test_a_chunked_body_that_grows_too_large_is_refused_on_the_way(healthy):
    with healthy.connect() as connection:
        connection.sendall(post(b"", "Transfer-Encoding: chunked"))
        for _ in range(17):
            connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        status, _, body = read_answer(connection)
        assert status == 413
        assert json.loads(body)["error"]


def test_a_connection_goes_on_after_a_refusal(healthy):
    with healthy.connect() as connection:
        for _ in range(5):
            connection.sendall(post(b"nonsense", "Content-Length: 8"))
            assert read_answer(connection)[0] == 400
        connection.sendall(GET)
        assert read_answer(connection)[0] == 200


def test_a_client_that_goes_away_in_its_own_request_leaves_nothing(healthy):
    for _ in range(50):
        with healthy.connect() as connection:
            connection.sendall(post(b"x" * 100, "Content-Length: 1000"))
    assert "Traceback" not in healthy.log


def test_a_reader_that_does_not_read_is_cut_off(healthy):
    name = "video_20260101_000000_slowly.mp4"
    (healthy.outputs / name).write_bytes(bytes(64_000_000))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", healthy.port))
        connection.sendall(f"GET /outputs/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert gone(healthy, connection.getsockname()[1], DEADLINE_S * 10)
    (healthy.outputs / name).unlink()


def gone(server, port: int, limit_s: float) -> bool:
    """Whether the server's process drops its connection with our `port` in time, without our reading a byte."""
    process = psutil.Process(server.process.pid)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if not any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")):
            return True
        time.sleep(0.05)
    return False


def test_a_large_download_that_is_read_slowly_but_steadily_is_whole(healthy):
    name, size = "video_20260101_000000_steady.mp4", 8_000_000
    (healthy.outputs / name).write_bytes(bytes(size))
    with healthy.connect() as connection:
        connection.sendall(f"GET /outputs/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = 0
        while piece := connection.recv(20_000):
            received += len(piece)
            time.sleep(0.005)  # the pace of a slow but honest client
    (healthy.outputs / name).unlink()
    assert received > size


def test_two_thousand_idle_connections_lock_nobody_out(start_server):
    server = start_server("--no-ui", "--max-connections", "200", "--receive-timeout-s", "60")
    idle = []
    try:
        for _ in range(2000):
            idle.append(server.connect())
        for _ in range(20):
            with server.connect() as connection:
                connection.sendall(GET)
                assert read_answer(connection)[0] == 200
        assert server.small_job().status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_when_all_places_are_busy_a_newcomer_is_told_when_to_come_back(start_server):
    server = start_server("--no-ui", "--max-connections", "3", "--fake-step-s", "0.1")
    busy = []
    try:
        for _ in range(3):
            connection = server.connect(timeout=60)
            body = json.dumps({"data": [small_photo(), "x", 256, 8, 8, 10, 7.5]}).encode()
            connection.sendall(post(body, f"Content-Length: {len(body)}"))
            busy.append(connection)
            wait_for_jobs(server, len(busy))
        assert server.raw(GET).startswith(b"HTTP/1.1 200")  # a probe has a place of its own
        answer = server.raw(GET.replace(b"/livez", b"/v1/models"))
        status, headers = parse_head(answer.partition(b"\r\n\r\n")[0])
        assert status == 503
        assert int(headers["retry-after"]) > 0
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        for connection in busy:
            assert read_answer(connection)[0] == 200
        assert server.raw(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")
    finally:
        for connection in busy:
            connection.close()


def wait_for_jobs(server, count: int) -> None:
    """Until the log says that so many requests are being worked on; asking over HTTP would need a place of its own."""
    end = time.monotonic() + 30
    while server.log.count("accepted job=") < count:
        assert time.monotonic() < end
        time.sleep(0.02)
