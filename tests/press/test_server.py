import signal
import socket
from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.slow


def test_serves_the_site_on_the_loopback_until_interrupted(built):
    press = built.start("serve", "--port", "0")
    address = press.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    try:
        with urlopen(f"{address}part_one/good.html") as answer:
            assert answer.headers["Cache-Control"] == "no-cache" and b"Title of good" in answer.read()
        port = int(address.rsplit(":", 1)[1].rstrip("/"))
        listening = socket.create_connection(("127.0.0.1", port))
        # A reader who goes away disturbs nobody.
        listening.close()
        assert f"port {port}" in built.run("serve", "--port", str(port), status=1).stderr
        # Nobody outside the site is reached.
        with pytest.raises(Exception, match="404"):
            urlopen(f"{address}%2e%2e/render.log")
    finally:
        press.send_signal(signal.SIGINT)
        built.finish(press, 0)
